"""The Python blocks of docs/CLUSTER.md run as they stand; jobs of submitit as processes of this machine.

`make cluster` installs what they need, and runs them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "CLUSTER.md").read_text(), flags=re.DOTALL | re.MULTILINE
)
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # mlflow-skinny comes without a database


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"submitit|wandb|mlflow", block).group())
def test_a_recipe_runs(block, tmp_path):
    script = tmp_path / "recipe.py"
    script.write_text(block.replace('folder="submitit"', 'folder="submitit", cluster="local"'))
    quiet = os.environ | {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "WANDB_SILENT": "true"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "submitit" in block:
        assert "seed_1" in done.stdout
    if "wandb" in block:
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    if "mlflow" in block:
        import mlflow

        mlflow.set_tracking_uri(quiet["MLFLOW_TRACKING_URI"])
        (run,) = mlflow.MlflowClient().search_runs(["0"])
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
        assert history[-1].step == 200
        assert history[-1].value < history[0].value

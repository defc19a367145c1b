"""CircuitsVis's JavaScript, and what its Python functions say of a view."""

import json
import re
from functools import cache

from circuitsvis.attention import attention_pattern
from circuitsvis.utils.render import RenderedHTML


def call_of(view: RenderedHTML) -> dict[str, object]:
    """The React component and the properties with which a view of CircuitsVis calls its JavaScript."""
    call = re.search(r"render\(\s*\"[^\"]*\",\s*(\w+),\s*(\{.*\})\s*\)\s*</script>", view.cdn_src, re.DOTALL)
    if call is None:
        raise RuntimeError("the installed CircuitsVis writes its views in another form: install circuitsvis 1.43")
    return {"component": call[1], "properties": json.loads(call[2])}


@cache
def circuits_vis_bundle() -> str:
    """The JavaScript of the installed CircuitsVis package, safe to stand inside a script element (1.3 MB).

    >>> "</script" in circuits_vis_bundle()
    False
    """
    local = attention_pattern(["a"], [[1.0]]).local_src
    source = local.split('<script crossorigin type="module">', 1)[1].split("//# sourceMappingURL=", 1)[0].strip()
    return source.replace("</script", r"<\/script").replace("<!--", r"<\!--")

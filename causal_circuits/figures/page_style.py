"""The style sheet of a report: light, readable on a phone, printable, contrast AA or better."""

PARTS_STYLE = """
.graph-view .figure, .graph-film .figure { overflow-x: auto; }
.edge { cursor: pointer; outline: none; }
.edge path { fill: none; }
.edge .line { stroke-width: 2; }
.edge .around { stroke: transparent; stroke-width: 12; }
.edge:hover .line, .edge:focus-visible .line, .edge.chosen .line { stroke-width: 4.5; }
.positions text { font: 11px system-ui, sans-serif; fill: #1a1a1a; stroke: #fff; stroke-width: 3; paint-order: stroke; }
.told { min-height: 3.1em; margin: .25rem 0 1rem; max-width: 46rem; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.5rem; margin: 0; font-size: .875rem; }
.head-buttons:not([hidden]), .film-controls:not([hidden]) {
  display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; }
.film-controls input { flex: 0 1 18rem; }
button { font: inherit; padding: .35rem .9rem; color: #1a1a1a; background: #fff; border: 1px solid #6e6e6e;
  border-radius: .3rem; cursor: pointer; }
button[aria-pressed="true"] { color: #fff; background: #005a8c; border-color: #005a8c; }
"""

PAGE_STYLE = (
    PARTS_STYLE
    + """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1.25rem 4rem; max-width: 66rem; background: #fff; color: #1a1a1a;
  overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 1rem 0; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem; }
section { margin: 2.5rem 0; }
a { color: #005a8c; }
nav h2 { font-size: 1rem; }
nav ol { margin: 0; padding-left: 1.5rem; }
nav li { padding: .15rem 0; }
.verdict { margin: 1rem 0 2rem; padding: 1rem 1.25rem; border: 1px solid #8a8a8a; border-radius: .5rem; }
.verdict ul { list-style: none; margin: 0; padding: 0; }
.verdict li { display: flex; gap: .9rem; padding: .5rem 0; border-top: 1px solid #d5d5d5; }
.verdict li > span:last-child { min-width: 0; overflow-wrap: anywhere; }
.mark { flex: none; width: 5rem; font-weight: 700; white-space: nowrap; }
.pass .mark { color: #00614a; }
.fail .mark { color: #a33a00; }
.evidence, .again, caption { color: #4a4a4a; }
.shows { margin: 0 0 1rem; max-width: 46rem; }
.figure, .scroll { overflow-x: auto; margin: 1rem 0; }
.side-by-side { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }
.side-by-side > .figure { flex: 1 1 30rem; max-width: 36rem; }
.side-by-side > .figure:only-child { max-width: none; }
.again { margin: 1rem 0 .25rem; font-size: .875rem; }
pre { margin: 0; padding: .6rem .8rem; overflow-x: auto; background: #f3f3f3; border-radius: .3rem; }
code { font: .875rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { max-width: 24rem; overflow-wrap: normal; padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #d5d5d5; }
th { border-bottom: 2px solid #8a8a8a; }
.number { text-align: right; white-space: nowrap; }
.meta dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 0; font-size: .9rem; }
.meta dt { color: #4a4a4a; }
.meta dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  body { padding: .5rem .8rem 3rem; }
  table { width: max-content; }
  .verdict li { flex-direction: column; gap: .1rem; }
  .meta dl { grid-template-columns: 1fr; gap: 0; }
  .meta dd { margin-bottom: .5rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  nav, .again, .again + pre, .head-buttons, .film-controls, .attention-steps { display: none !important; }
  .attention-view { max-width: 13cm; }
  .side-by-side { gap: 0 2%; }
  .side-by-side > .figure, .head-panel { flex: 0 0 49%; max-width: 49%; }
  .side-by-side > .figure:only-child { flex-basis: 100%; }
  .head-panel { display: inline-block; width: 49%; vertical-align: top; }
  .head-panel[hidden] { display: inline-block !important; }
  .figure, .scroll { overflow: visible; }
  .figure svg, .figure img { min-width: 0 !important; max-width: 100% !important; }
  .figure, table, .verdict li { break-inside: avoid; }
  h2, .shows { break-after: avoid; }
}
"""
)

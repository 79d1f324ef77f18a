"""How the page of a run looks."""

PAGE_CSS = """
:root {
  --ground: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #5b6575; --line: #dfe3ea; --accent: #1f6fb5;
  --warn: #fff5dc; --warn-line: #e8b93c; --start: #6baed6; --noise: #bfc5cf; --staleness: #f0a04b;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181f; --card: #1d232c; --ink: #e6e9ee; --soft: #9aa5b5; --line: #323b48; --accent: #6cb2ee;
    --warn: #37301c; --warn-line: #b08a2a;
  }
  figure img { filter: brightness(.92); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); }
header, main { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .9rem; font-size: 1.2rem; }
header p { margin: .3rem 0 1.5rem; color: var(--soft); }
.status {
  display: inline-block; padding: .1rem .6rem; border-radius: 1rem; vertical-align: .3em;
  font-size: .8rem; font-weight: 600; line-height: 1.5; background: #d9efdd; color: #1d5c2c;
}
.status:not(.complete) { background: #fdecc3; color: #6b4b00; }
.figures { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }
.figures div, figure, details, dl { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.figures div { padding: .65rem; }
.figures b {
  display: block; font-size: 1.2rem; line-height: 1.3; font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.figures span { color: var(--soft); font-size: .8rem; }
.warnings {
  margin: 0 0 1.25rem; padding: .7rem 1rem; border-radius: .6rem;
  background: var(--warn); border: 1px solid var(--warn-line);
}
.warnings ul { margin: .2rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(2, minmax(0, 1fr)); }
.wide { grid-column: 1 / -1; }
figure { margin: 0; padding: .8rem; }
figcaption { margin-bottom: .5rem; color: var(--soft); font-size: .9rem; }
figcaption b { color: var(--ink); }
figure img { display: block; width: 100%; border-radius: .3rem; background: #fff; }
.scroll { overflow-x: auto; }
details { padding: .6rem 1rem; margin-top: 1rem; }
.plots details { margin: 0; }
summary { cursor: pointer; font-weight: 600; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
section > .scroll { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .4rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; padding: .8rem 1rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
.settings { columns: 17rem; column-gap: 2rem; padding-top: .5rem; }
.settings pre { break-inside: avoid; padding-bottom: .9rem; overflow-wrap: anywhere; }
.terms { display: flex; gap: .8rem; align-items: center; margin: .7rem 0; }
.terms div { display: flex; flex: 1; height: 1.9rem; overflow: hidden; border-radius: .4rem; }
.terms i { overflow: hidden; padding: 0 .5rem; font: .8rem/1.9rem inherit; line-height: 1.9rem; white-space: nowrap; }
.terms i { font-style: normal; font-size: .8rem; color: #1c2330; min-width: 0; }
.terms .start { background: var(--start); }
.terms .noise { background: var(--noise); }
.terms .staleness { background: var(--staleness); }
@media (max-width: 52rem) {
  .plots { grid-template-columns: minmax(0, 1fr); }
  .wide img { min-width: 40rem; }
  header, main { padding: 0 .8rem; }
  header { padding-top: 1.2rem; }
  figure { padding: .5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
main { padding-bottom: 3rem !important; }
@media print { body { background: #fff; } figure { break-inside: avoid; } }
"""

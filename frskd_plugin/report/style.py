"""The page's style sheet: light and dark, and narrow screens."""

from __future__ import annotations

# Colours of the runs: each has a contrast of 4.5 or more to its background.
LIGHT = ("#0b5cad", "#b4430a", "#13723a", "#8e2a8b", "#0b6b7a", "#7a5200", "#b3123f", "#4b5563")
DARK = ("#6fb1ff", "#ff9e64", "#5fd38d", "#e58bf0", "#5cd3e8", "#e3c15a", "#ff8fa3", "#b6bec9")
BACKGROUND = {"light": "#ffffff", "dark": "#14171c"}

_RULES = """
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:76rem;background:var(--back);color:var(--text);
font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
h3,figcaption{font-size:1rem;font-weight:600;margin:0 0 .25rem}
.muted,.note,caption{color:var(--muted)}
.note{font-size:.85rem;margin:.25rem 0}
.scroll{overflow:auto}
details .scroll{max-height:34rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left}
th,td{padding:.2rem .7rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td.number,th.number{text-align:right}
.charts{display:grid;grid-template-columns:minmax(0,1fr);gap:1.5rem}
@media(min-width:56rem){.charts{grid-template-columns:repeat(2,minmax(0,1fr))}}
.charts>*{min-width:0}
figure{margin:0}
figure code{font-weight:400;color:var(--muted)}
figure svg{width:100%;height:auto;display:block}
svg text{font-size:13px;fill:var(--muted)}
.legend{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:0 1rem;font-size:.9rem}
.legend li{display:flex;align-items:center;gap:.4rem;overflow-wrap:anywhere}
.legend svg.swatch{width:36px;height:12px;flex:none}
.grid{stroke:var(--line);fill:none}
.axis{stroke:var(--muted);fill:none}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.dashed .line{stroke-dasharray:6 4}
.marker{fill:var(--c)}
.dashed .marker{fill:var(--back);stroke:var(--c);stroke-width:1.5}
summary{cursor:pointer;font-size:.9rem}
pre{overflow:auto;max-height:34rem;font-size:.8rem;padding:.5rem;border:1px solid var(--line)}
.picture img{display:block;background:#fff}
"""


def style_sheet() -> str:
    """All rules.

    >>> "prefers-color-scheme:dark" in style_sheet()
    True
    """
    light = f"--back:{BACKGROUND['light']};--text:#1a1d21;--muted:#4d5660;--line:#d5d9de"
    dark = f"--back:{BACKGROUND['dark']};--text:#e6e9ed;--muted:#a9b2bd;--line:#3a414b"
    return (
        f":root{{color-scheme:light dark;{light}}}{_colours(LIGHT)}"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}{_colours(DARK)}}}{_RULES}"
    )


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(f".c{number}{{--c:{colour}}}" for number, colour in enumerate(colours))

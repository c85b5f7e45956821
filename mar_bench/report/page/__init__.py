"""The page of a scale: one HTML file with its claims, tables, figures and images, which needs no network.

build.py collects an experiment's parts, interactive.py turns its figure into one for plotly, pictures.py turns arrays
of images into data URIs; the layout is in report/templates: page.html.j2, page.css and page.js. Start with build.py."""

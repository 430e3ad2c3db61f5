"""`mos-bench identity` and `mos-bench settings`: how well concepts survive being fused.

storage/     the cache of drawings and scores, and the locks by which processes share work
concepts/    what is measured: concepts, prompts about them, and their tuned files
drawing/     models to draw with, and requests for drawings
scoring/     scorers, references, claims of prompts, and the scores of drawings
measuring/   the bench, and every measurement: curve, tables, several concepts in one picture
pages/       rows, tables, plots and contact sheets
options.py, sections.py, run.py, settings_study.py   the two commands' work
"""

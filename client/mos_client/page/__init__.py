"""The participant's page, `mos-client open`: the commands' functions behind forms.

desk.py         which state folders there are, and how each stands
work.py         commands that run on when page and browser are closed
start.py        kit and name
pictures.py     pictures, captions, and what `check` says of them
tuning.py       will it fit, and tuning: pause, stop, resume
leaving.py      exactly what leaves, the yes to it, and withdrawing
rounds.py       the round, and the concept before and after fusion
drawing.py      pictures with concepts, regions and sketches; the gallery
application.py  all of it as one application
"""

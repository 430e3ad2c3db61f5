"""The operator's page: a federation at a glance, and what its commands do, on loopback.

opening.py      who may open it: two tokens, or two secrets of a proxy
application.py  its addresses
views.py        what is shown, read from the journal and the state folder
model_view.py   what is shown of one model, from its manifest
acts.py         what its forms do: each calls the function of the command that it names
asking.py       the command of the form that asks for a round
children.py     commands that load the model, in processes of their own

Nothing is known here that the commands do not know too.
"""

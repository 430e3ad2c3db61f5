"""What the participant's and the operator's page share: who may look, how a page looks, serving.

access.py      tokens, cookies, roles, and what is refused because of where it comes from
actions.py     reading what a form or a script sends, within limits
formats.py     sizes, times and shares as people read them
rendering.py   templates of the pages: everything is escaped, nothing undefined is drawn as nothing
application.py a page's application: access in front, errors as pages
serving.py     a socket of this machine alone, and the address with the token
"""

"""pytest plugin for upstream_suite.py, both sides: bcrypt costs a thirtieth. Half of the suite's time is hashing, which is not ours.

Not the lowest cost: InvokeAI's tests want a hash to take 10 ms.
"""

from invokeai.app.services.auth.password_utils import pwd_context

pwd_context.update(bcrypt__rounds=7)

"""Passwords of the tests: what one costs in production, half a second of a core, is for the tests that are about it.

A module of its own, for conftest.py is imported under two names where the browser's tests use its fixtures.
"""

from argon2 import PasswordHasher

from invokeai_saas.accounts import passwords

STRONG, passwords._hasher = passwords._hasher, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)

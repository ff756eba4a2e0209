"""A password in, an argon2id hash out, and back to yes or no in the same time whether or not there is a hash to compare with.

Hashes that InvokeAI made (bcrypt) are still accepted, and replaced at the next login.
"""

import secrets
import string
from functools import lru_cache

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from invokeai_saas.accounts.errors import BadAccountInput

MIN_CHARACTERS = 8
# Longer ones only cost the server time.
MAX_CHARACTERS = 1024
_BCRYPT_BYTES = 72
# RFC 9106's second recommendation: 64 MiB, 3 passes.
_hasher = PasswordHasher(time_cost=3, memory_cost=65536, parallelism=4)


def demand_strong(password: str) -> None:
    """Raise BadAccountInput unless the password has 8 characters or more, an upper, a lower and a digit (C-47; no symbol needed)."""
    lacks = [] if len(password) >= MIN_CHARACTERS else [f"at least {MIN_CHARACTERS} characters"]
    tests = (("an upper-case letter", str.isupper), ("a lower-case letter", str.islower), ("a digit", str.isdigit))
    lacks += [name for name, test in tests if not any(map(test, password))]
    if len(password) > MAX_CHARACTERS:
        lacks.append(f"at most {MAX_CHARACTERS} characters")
    if not _is_text(password):
        lacks.append("characters that can be encoded")
    if lacks:
        raise BadAccountInput(f"password: expected {', '.join(lacks)}")


def hash_password(password: str) -> str:
    """An argon2id hash with its own salt and parameters."""
    return _hasher.hash(password)


def verify_password(password: str, stored: str | None) -> bool:
    """Compare. Without a usable hash (unknown address, account without password) it takes as long and says no."""
    if len(password) > MAX_CHARACTERS or not _is_text(password):
        password, stored = "", None
    if stored and stored.startswith("$2"):
        # InvokeAI cuts at bcrypt's limit, and drops a character that the cut would split.
        cut = password.encode()[:_BCRYPT_BYTES].decode(errors="ignore").encode()
        return bool(bcrypt.checkpw(cut, stored.encode()))
    try:
        return _hasher.verify(stored or _nobodys_hash(), password) and bool(stored)
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(stored: str) -> bool:
    """True when a login should store a new hash: bcrypt, or argon2 with other parameters."""
    return stored.startswith("$2") or _hasher.check_needs_rehash(stored)


def random_password() -> str:
    """20 characters that meet the rules; shown once."""
    alphabet = string.ascii_letters + string.digits
    while True:
        password = "".join(secrets.choice(alphabet) for _ in range(20))
        try:
            demand_strong(password)
        except BadAccountInput:
            continue
        return password


def _is_text(password: str) -> bool:
    """False for half of a surrogate pair and for NUL: the hash functions raise on them."""
    return "\0" not in password and not any("\ud800" <= character <= "\udfff" for character in password)


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return _hasher.hash(secrets.token_urlsafe(32))

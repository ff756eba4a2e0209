"""Tokens of an identity provider: a real key set over HTTP, keys made here, every claim that must hold, and whose account it is."""

import base64
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from saas.people import OTHER_PASSWORD, PASSWORD, join, letters, rows, secret_of

from invokeai_saas.accounts import admin, service
from invokeai_saas.accounts.errors import LinkInvalid, NotSignedIn, WrongPassword
from invokeai_saas.accounts.identify import identify
from invokeai_saas.accounts.oidc import OidcVerifier, ProviderUnavailable, fetch

ISSUER, CLIENT, ANN = "https://pool.example/eu_1", "client-1", "ann@example.com"
KEY, OTHER_KEY = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))


def jwk(key, kid):
    return {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", "alg": "RS256"}


def token(key=KEY, kid="k1", algorithm="RS256", without=(), **changes):
    claims = {"iss": ISSUER, "aud": CLIENT, "sub": "sub-1", "exp": int(time.time()) + 600, "email": ANN, "email_verified": True} | changes
    claims = {name: value for name, value in claims.items() if name not in without}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid} if kid else None)


class Provider:
    """Serves a key set and counts how often it is asked."""

    def __init__(self):
        self.keys, self.asked, provider = [jwk(KEY, "k1")], 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.asked += 1
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def provider():
    started = Provider()
    yield started
    started.close()


@pytest.fixture
def now():
    return [1000.0]


@pytest.fixture
def verify(provider, now):
    return OidcVerifier(ISSUER, CLIENT, provider.url, clock=lambda: now[0])


@pytest.fixture
def trusting(accounts, verify):
    return replace(accounts, verify_oidc=verify)


def test_a_good_token_passes_with_either_way_of_naming_the_client(verify):
    cognitos = token(without=("aud",), client_id=CLIENT)

    assert verify(token())["sub"] == verify(cognitos)["sub"] == verify(token(aud=["other", CLIENT]))["sub"] == "sub-1"


def test_tokens_with_anything_wrong_are_refused(verify):
    public = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"k1"}').rstrip(b"=").decode()
    wrong = {
        "another key": token(key=OTHER_KEY), "unknown key id": token(kid="k9"), "no key id": token(kid=None),
        "no signature": token(key="", algorithm="none"), "the public key as a secret": _hs256(head, public),
        "another algorithm": token(algorithm="RS512"), "expired": token(exp=int(time.time()) - 60),
        "another issuer": token(iss="https://evil.example"), "another client": token(aud="client-2"),
        "no client": token(without=("aud",)), "another client id": token(without=("aud",), client_id="x"),
        "no end": token(without=("exp",)), "no issuer": token(without=("iss",)), "no subject": token(without=("sub",)),
        "not yet": token(nbf=int(time.time()) + 600), "no token": "x.y.z",
    }  # fmt: skip
    for name, bad in wrong.items():
        with pytest.raises(NotSignedIn):
            verify(bad)
            pytest.fail(name)


def _hs256(head, public):
    import hashlib
    import hmac

    body = token().split(".")[1]
    signature = hmac.new(public, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def test_keys_are_asked_for_once_an_hour(verify, provider, now):
    for seconds in (0, 1800, 3599):
        now[0] = 1000.0 + seconds
        verify(token())
    before = provider.asked
    now[0] = 1000.0 + 3600
    verify(token())

    assert (before, provider.asked) == (1, 2)


def test_unknown_key_ids_ask_again_once_a_minute_at_most(verify, provider, now):
    verify(token())
    for _ in range(20):
        with pytest.raises(NotSignedIn):
            verify(token(kid="forged"))
    before = provider.asked
    provider.keys.append(jwk(OTHER_KEY, "k2"))
    now[0] += 60
    rotated = verify(token(key=OTHER_KEY, kid="k2"))

    assert (before, provider.asked, rotated["sub"]) == (1, 2, "sub-1")


def test_old_keys_serve_while_the_provider_is_away(verify, provider, now):
    verify(token())
    provider.close()
    now[0] += 4000

    assert verify(token())["sub"] == "sub-1"


def test_without_any_keys_the_answer_is_try_again(provider):
    provider.close()

    with pytest.raises(ProviderUnavailable):
        OidcVerifier(ISSUER, CLIENT, provider.url)(token())


def test_keys_are_read_over_https_only():
    for url in ("http://pool.example/jwks", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="https"):
            fetch(url)


def test_a_first_token_makes_a_verified_account_without_password(trusting, database):
    caller = identify(trusting, token(name="Ann"))
    again = identify(trusting, token(without=("email", "email_verified")))

    assert (caller.kind, caller.account.display_name, caller.role) == ("oidc", "Ann", "user")
    assert again.user_id == caller.user_id
    with pytest.raises(WrongPassword):
        service.login(trusting, email=ANN, password="")


def test_a_verified_address_is_linked_and_keeps_its_password(trusting):
    ann = join(trusting, ANN)

    assert identify(trusting, token(email="Ann@Example.com")).user_id == ann.user_id
    assert service.login(trusting, email=ANN, password=PASSWORD)


@pytest.mark.parametrize("claims", [{"email_verified": False}, {"without": ("email_verified",)}, {"without": ("email",)}])
def test_an_unproved_address_links_nothing(trusting, claims):
    join(trusting, ANN)

    with pytest.raises(NotSignedIn):
        identify(trusting, token(**claims))


def test_a_strangers_unverified_signup_loses_its_password_to_the_owner(trusting, database):
    service.signup(trusting, email=ANN, password=OTHER_PASSWORD, name="Mallory")
    caller = identify(trusting, token(email_verified="true"))

    with pytest.raises(WrongPassword):
        service.login(trusting, email=ANN, password=OTHER_PASSWORD)
    with pytest.raises(LinkInvalid):
        service.verify_email(trusting, secret_of(letters(database, "verify", ANN)[0]))
    assert caller.account.email == ANN


def test_a_deactivated_account_stays_out_with_a_good_token(trusting, database):
    caller = identify(trusting, token())
    rows(database, "UPDATE users SET is_active = 0 WHERE user_id = %s", caller.user_id)

    with pytest.raises(NotSignedIn):
        identify(trusting, token())


def test_a_role_claim_counts_only_where_the_operator_names_it_and_never_makes_super_admins(trusting, database):
    named = replace(trusting, policy=replace(trusting.policy, oidc_role_claim="custom:role"))
    unnamed_role = identify(trusting, token(**{"custom:role": "admin"})).role
    roles = [identify(named, token(**{"custom:role": claim})).role for claim in ("admin", "super_admin", "wizard", "user")]
    audited = rows(database, "SELECT details FROM audit_log WHERE action = 'role_from_provider' ORDER BY audit_id")

    assert (unnamed_role, roles) == ("user", ["admin", "admin", "admin", "user"])
    assert [line["details"]["to"] for line in audited] == ["admin", "user"]


def test_without_a_provider_its_tokens_are_nothing(accounts):
    with pytest.raises(NotSignedIn):
        identify(accounts, token())


def test_the_first_admin_stays_one_whatever_a_claim_says(trusting):
    named = replace(trusting, policy=replace(trusting.policy, oidc_role_claim="custom:role"))
    admin.ensure_admin(named, ANN)

    assert identify(named, token(**{"custom:role": "user"})).role == "super_admin"

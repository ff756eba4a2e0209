"""The refresh cookie: what lets InvokeAI's interface stay signed in, and what no other site's page can make use of."""
# ruff: noqa: F811 - fixtures come by import

import pytest
from saas.people import OTHER_PASSWORD, PASSWORD, join
from saas.test_accounts_api import ANN, as_bearer, client, limiter, post  # noqa: F401

from invokeai_saas.accounts.cookies import REFRESH_COOKIE, REFRESH_HEADER

HERE = {"Origin": "https://invoke.example"}


def refresh(client, headers=HERE, **options):
    return client.post("/api/v1/auth/refresh", headers=headers, **options)


def refresh_cookies(answer):
    return [cookie for cookie in answer.headers.get_list("set-cookie") if cookie.startswith(f"{REFRESH_COOKIE}=")]


@pytest.fixture
def signed_in(client, accounts):
    join(accounts, ANN)
    return post(client, "auth/login", email=ANN, password=PASSWORD)


def test_a_login_leaves_a_cookie_for_the_refresh_route_that_no_script_reads(client, signed_in):
    (cookie,) = refresh_cookies(signed_in)

    assert cookie.startswith(f"{REFRESH_COOKIE}={signed_in.json()['refresh_token']};")
    parts = ("HttpOnly", "Secure", "SameSite=strict", "Path=/api/v1/auth/refresh", "Max-Age=2592000")
    assert all(part in cookie for part in parts)


def test_a_page_goes_on_for_days_by_its_cookie_alone(client, signed_in):
    seen = {signed_in.json()["token"]}
    for _ in range(4):
        answer = refresh(client)
        seen.add(answer.json()["token"])
        assert (answer.status_code, answer.json()["refresh_token"]) == (200, None)
        assert client.get("/api/v1/auth/me", headers=as_bearer(answer.json()["token"])).status_code == 200

    assert len(seen) == 5


@pytest.mark.parametrize("headers", [
    {}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "https://invoke.example.evil.example"},
    {"Origin": "https://evil.example", REFRESH_HEADER: "1"},
])  # fmt: skip
def test_another_sites_page_cannot_spend_the_cookie(client, signed_in, headers):
    answer = refresh(client, headers)

    assert (answer.status_code, refresh_cookies(answer)) == (403, [])
    assert refresh(client).status_code == 200


def test_a_client_without_an_origin_says_so_by_a_header(client, signed_in):
    assert refresh(client, {REFRESH_HEADER: "1"}).status_code == 200


def test_a_cookie_that_comes_twice_ends_the_login_and_is_taken_back(client, signed_in):
    spent = signed_in.json()["refresh_token"]
    fresh = refresh(client).json()["token"]
    client.cookies.clear()
    again = refresh(client, {**HERE, "Cookie": f"{REFRESH_COOKIE}={spent}"})

    assert again.status_code == 401 and 'Path=/api/v1/auth/refresh' in refresh_cookies(again)[0]
    assert refresh_cookies(again)[0].startswith(f'{REFRESH_COOKIE}="";')
    assert client.get("/api/v1/auth/me", headers=as_bearer(fresh)).status_code == 401


def test_without_cookie_and_body_nobody_is_signed_in(client):
    assert refresh(client).status_code == 401


def test_a_body_needs_no_origin_and_tells_the_next_token(client, signed_in):
    answer = refresh(client, {}, json={"refresh_token": signed_in.json()["refresh_token"]})

    assert answer.status_code == 200 and answer.json()["refresh_token"]


@pytest.mark.parametrize("path", ["logout", "logout-everywhere"])
def test_a_logout_takes_the_cookie_back(client, signed_in, path):
    out = post(client, f"auth/{path}", signed_in.json()["token"])

    assert out.status_code == 200 and refresh_cookies(out)[0].startswith(f'{REFRESH_COOKIE}="";')
    assert refresh(client).status_code == 401
    assert client.get("/api/v1/auth/me", headers=as_bearer(signed_in.json()["token"])).status_code == 401


def test_a_new_password_renews_the_cookie(client, signed_in):
    body = {"current_password": PASSWORD, "new_password": OTHER_PASSWORD}
    changed = client.patch("/api/v1/auth/me", json=body, headers=as_bearer(signed_in.json()["token"]))

    assert len(refresh_cookies(changed)) == 1
    assert refresh(client).status_code == 200

"""The pages of accounts as they are served: both languages, nothing that runs inline, nothing of anybody's in them."""

import re
from html.parser import HTMLParser
from typing import get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from invokeai_saas.accounts import api, letters
from invokeai_saas.accounts.model import AccountPolicy, Accounts
from invokeai_saas.accounts.rate_limits import RateLimiter
from invokeai_saas.billing import api as billing_api
from invokeai_saas.billing import service
from invokeai_saas.billing.model import PACKS, Billing
from invokeai_saas.credits.model import TRANSACTION_TYPES, Source
from invokeai_saas.web import billing_texts, pages, texts

BILLING = pages.FOLDER.parent / "billing"
PAGES = ["", "/billing", "/sign-up", "/check-mail", "/verify-email", "/forgot-password", "/reset-password"]


def open_client(gateway=None, metering=True, **policy):
    app = FastAPI()
    # No page asks the database.
    api.install(app, api.Web(Accounts(None, AccountPolicy(**policy)), RateLimiter()))
    billing_api.install(app, Billing(Accounts(None), gateway), metering=metering)
    app.include_router(pages.pages_router)
    return TestClient(app, base_url="https://invoke.example")


@pytest.fixture
def client():
    return open_client()


class Elements(HTMLParser):
    """Every element with its attributes, and the texts between them."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, *tags):
        return [attrs for tag, attrs in self.found if tag in tags]


@pytest.mark.parametrize("lang", texts.LANGUAGES)
@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_in_both_languages(client, path, lang):
    answer = client.get(f"/account{path}", params={"lang": lang})
    other = client.get(f"/account{path}", params={"lang": "ko" if lang == "en" else "en"})

    assert answer.status_code == 200
    assert Elements(answer.text).all("html") == [{"lang": lang}] and answer.headers["Content-Language"] == lang
    assert bool(re.search("[가-힣]", re.sub("한국어", "", "".join(Elements(answer.text).text)))) is (lang == "ko")
    assert answer.text != other.text
    # A word that is called as a method of the dictionary is would show as one.
    assert "built-in" not in answer.text


@pytest.mark.parametrize(("accepted", "lang"), [
    ("ko-KR,ko;q=0.9,en;q=0.8", "ko"), ("de, en;q=0.7, ko;q=0.3", "en"), ("", "en"), ("fr", "en"), ("ko;q=0, en", "en"),
    ("en;q=x, ko", "ko"), ("EN-us", "en"),
])  # fmt: skip
def test_the_browsers_language_is_spoken(client, accepted, lang):
    assert client.get("/account/sign-up", headers={"Accept-Language": accepted}).headers["Content-Language"] == lang


def test_both_languages_have_the_same_words():
    for catalogue in (texts.WORDS, texts.SCRIPT_WORDS, billing_texts.WORDS, billing_texts.SCRIPT_WORDS):
        english, korean = catalogue["en"], catalogue["ko"]
        assert set(english) == set(korean)
        for key in english:
            for place in ("{0}", "{1}"):
                assert english[key].count(place) == korean[key].count(place), key


def test_every_word_of_the_script_is_there_and_used():
    script = (pages.FOLDER / "static" / "account.js").read_text()
    used = set(re.findall(r'(?:say\(|[?:] )"(\w+)"', script)) | set(re.findall(r"(\w+): (?:text\.length|/\\p)", script))

    assert set(texts.SCRIPT_WORDS["en"]) - {"upper", "lower", "digit", "already_confirmed"} <= used
    assert set(re.findall(r'say\("(\w+)"', script)) <= set(texts.SCRIPT_WORDS["en"])


def test_every_word_of_the_billing_script_is_there_and_used():
    script = (pages.FOLDER / "static" / "billing.js").read_text()
    used, words = set(re.findall(r'"(\w+)"', script)), set(billing_texts.SCRIPT_WORDS["en"])
    made = {word for word in words if word.startswith(("status_", "from_", "type_"))} - {"from_then"}
    by_code = {"plan_required", "payment_open", "billing_not_set_up", "payment_provider_unavailable"}

    assert words - made - by_code <= used
    assert set(re.findall(r'say\("(\w+)"', script)) <= words
    assert {f"from_{source}" for source in get_args(Source)} | {f"type_{kind}" for kind in TRANSACTION_TYPES} <= made
    errors = (BILLING / "errors.py").read_text()
    assert {code for code in by_code if code in errors} == by_code - {"plan_required"}


@pytest.mark.parametrize(("sells", "metering", "ids"), [
    (True, True, {"packs", "portal", "billing"}), (False, True, {"not-sold", "billing"}), (False, False, {"not-metered"}),
])  # fmt: skip
def test_the_billing_page_offers_what_the_server_can_sell_and_says_plainly_what_it_cannot(sells, metering, ids):
    page = Elements(open_client(object() if sells else None, metering).get("/account/billing").text)
    found = {attrs.get("id") for _, attrs in page.found}

    assert found & {"packs", "portal", "billing", "not-sold", "not-metered"} == ids
    assert [attrs["data-pack"] for attrs in page.all("button") if "data-pack" in attrs] == (list(PACKS) if sells else [])


def test_old_letters_lead_to_the_page_of_billing_and_the_account_does_too(client):
    moved = client.get("/account/subscription?lang=ko", follow_redirects=False)
    links = [attrs["href"] for attrs in Elements(client.get("/account?lang=ko").text).all("a")]

    assert (moved.status_code, moved.headers["location"]) == (307, "/account/billing?lang=ko")
    assert "/account/billing?lang=ko" in links


def test_every_address_that_letters_and_stripe_send_people_to_is_a_page(client):
    ours = {path.partition("#")[0] for path in letters.PATHS.values() if path.startswith("/account")}

    for path in ours | {service.PAGE, service.PAID, service.NOT_PAID}:
        assert client.get(path, follow_redirects=False).status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_nothing_runs_or_styles_inline_and_no_form_is_sent_by_itself(client, path):
    answer = client.get(f"/account{path}")
    page = Elements(answer.text)

    policy = answer.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy and "form-action 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert all(script["src"].startswith("/account/static/") for script in page.all("script"))
    assert not page.all("style") and not [attrs for _, attrs in page.found if "style" in attrs or any(n.startswith("on") for n in attrs)]


@pytest.mark.parametrize("path", PAGES)
def test_every_field_has_a_label_and_its_messages_are_announced(client, path):
    page = Elements(client.get(f"/account{path}").text)
    labels = {attrs.get("for") for attrs in page.all("label")}
    ids = {attrs.get("id") for _, attrs in page.found}

    for field in page.all("input", "select"):
        if field.get("type") != "checkbox":
            assert field["id"] in labels
            assert set(field.get("aria-describedby", "").split()) <= ids
    assert all("autocomplete" in field for field in page.all("input") if field.get("type") in ("password", "email", "text"))


def test_a_closed_signup_has_no_form():
    page = Elements(open_client(signup_open=False).get("/account/sign-up").text)

    assert page.all("form") == [] and texts.WORDS["en"]["signup_closed"] in page.text


def test_behind_a_prefix_every_address_has_it():
    app = FastAPI()
    app.mount("/tools", open_client().app)
    page = Elements(TestClient(app).get("/tools/account/sign-up").text)
    addresses = [attrs[name] for _, attrs in page.found for name in ("href", "src") if name in attrs]

    assert all(address.startswith(("/tools/", "?lang=")) for address in addresses) and len(addresses) > 5


@pytest.mark.parametrize("name", pages.STATIC)
def test_static_files_are_checked_by_browsers_each_time(client, name):
    answer = client.get(f"/account/static/{name}")

    assert answer.headers["content-type"].startswith(pages.STATIC[name]) and answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("name", ["pages.py", "..%2Fpages.py", "%2e%2e/pages.py", "nothing.js"])
def test_no_other_file_is_served(client, name):
    assert client.get(f"/account/static/{name}").status_code == 404


def test_an_unknown_language_is_a_mistake(client):
    assert client.get("/account/sign-up", params={"lang": "xx"}).status_code == 422

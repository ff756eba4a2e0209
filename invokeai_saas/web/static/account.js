// The forms of the account pages: what was typed is looked at here, sent as JSON, and what the server says is shown where it belongs.
"use strict";
(() => {
  const { page, root, suffix, words: packed } = document.body.dataset;
  const words = JSON.parse(packed);
  const byId = (id) => document.getElementById(id);
  const say = (key, ...values) => values.reduce((text, value, n) => text.replace(`{${n}}`, value), words[key]);
  const TOKEN = "auth_token";
  const linkToken = new URLSearchParams(location.hash.slice(1)).get("token") ?? "";
  // The link's secret does not stay in the address bar and the history.
  if (linkToken) history.replaceState(null, "", location.pathname + location.search);

  class Refused extends Error {}

  async function call(method, path, body, key) {
    const token = localStorage.getItem(TOKEN);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }), ...(key && { "Idempotency-Key": key }) };
    let answer;
    try {
      answer = await fetch(`${root}/api/v1/${path}`, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    } catch {
      throw new Refused(say("offline"));
    }
    const content = await answer.json().catch(() => ({}));
    if (answer.ok) return { content, headers: answer.headers };
    throw Object.assign(new Refused(reason(answer, content)), { status: answer.status, code: content.error });
  }

  function reason(answer, content) {
    if (Object.hasOwn(words, content.error ?? "")) return say(content.error);
    if (answer.status === 429) return say("too_many", answer.headers.get("Retry-After") ?? "60");
    if (answer.status >= 500) return say("offline");
    if (content.detail === "Current password is incorrect") return say("wrong_password");
    if (linkToken && answer.status === 400 && /link/.test(content.detail)) return say("link_invalid");
    const text = Array.isArray(content.detail) ? content.detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ") : content.detail;
    return text || say("failed", answer.status);
  }

  const problems = {
    email: (text) => (/^[^\s@]+@[^\s@]+$/.test(text.trim()) ? "" : say("email_expected", text)),
    some: (text) => (text ? "" : say("empty_expected")),
    name: (text) => (text.length >= 1 && text.length <= 100 && !/\p{C}/u.test(text) ? "" : say("name_expected", text)),
    maybe: (text) => (text ? problems.name(text) : ""),
    password(text) {
      const tests = { length: text.length >= 8, too_long: text.length <= 1024, upper: /\p{Lu}/u.test(text), lower: /\p{Ll}/u.test(text), digit: /\p{Nd}/u.test(text) };
      const lacks = Object.keys(tests).filter((key) => !tests[key]);
      return lacks.length ? say("password_expected", lacks.map((key) => words[key]).join(", ")) : "";
    },
  };

  function mark(input, problem) {
    const place = byId(`${input.id}-error`);
    place.textContent = problem;
    place.hidden = !problem;
    input.setAttribute("aria-invalid", String(Boolean(problem)));
  }

  function areRight(form, rules) {
    const wrong = Object.entries(rules).filter(([id, rule]) => {
      const input = byId(id);
      const problem = problems[rule](input.value);
      mark(input, problem);
      return problem;
    });
    if (wrong.length) byId(wrong[0][0]).focus();
    return wrong.length === 0;
  }

  function tell(place, text, kind) {
    const message = place.querySelector(".message");
    message.textContent = text;
    message.className = `message ${kind}`;
    message.hidden = false;
  }

  async function working(place, buttons, work) {
    for (const button of buttons) button.disabled = true;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status === 401 && ["account", "billing"].includes(page)) location.assign(`${root}/login`);
      else tell(place, error.message, "error");
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  function onSubmit(id, rules, send) {
    const form = byId(id);
    form?.addEventListener("submit", (event) => {
      event.preventDefault();
      form.querySelector(".message").hidden = true;
      if (areRight(form, rules)) void working(form, form.querySelectorAll("button[type=submit]"), () => send(form));
    });
  }

  function onClick(id, act) {
    const button = byId(id);
    button?.addEventListener("click", () => void working(button.closest("section"), [button], act));
  }

  const value = (id) => byId(id).value;
  const empty = (...ids) => ids.forEach((id) => { byId(id).value = ""; });

  for (const link of document.querySelectorAll("[data-language]")) {
    // The letter's secret comes along to the same page in the other language.
    if (linkToken) link.hash = `token=${linkToken}`;
  }
  for (const box of document.querySelectorAll("[data-shows]")) {
    box.addEventListener("change", () => {
      for (const id of box.dataset.shows.split(" ")) byId(id).type = box.checked ? "text" : "password";
    });
  }

  onSubmit("sign-up", { email: "email", name: "maybe", password: "password" }, async () => {
    const body = { email: value("email").trim(), password: value("password"), ...(value("name") && { name: value("name") }) };
    await call("POST", "auth/signup", body);
    location.assign(`${root}/account/check-mail${suffix}`);
  });

  onSubmit("forgot-password", { email: "email" }, async () => {
    await call("POST", "auth/forgot-password", { email: value("email").trim() });
    location.assign(`${root}/account/check-mail${suffix}`);
  });

  onSubmit("verify-email", {}, async () => {
    if (!linkToken) throw new Refused(say("link_invalid"));
    const { content } = await call("POST", "auth/verify-email", { token: linkToken });
    localStorage.setItem(TOKEN, content.token);
    location.assign(`${root}/`);
  });

  onSubmit("reset-password", { password: "password" }, async (form) => {
    if (!linkToken) throw new Refused(say("link_invalid"));
    await call("POST", "auth/reset-password", { token: linkToken, password: value("password") });
    localStorage.removeItem(TOKEN);
    form.hidden = true;
    byId("done").hidden = false;
  });

  onSubmit("profile", { name: "name" }, async (form) => {
    await call("PATCH", "auth/me", { name: value("name") });
    tell(form, say("saved"), "good");
  });

  onSubmit("change-password", { current_password: "some", password: "password" }, async (form) => {
    const body = { current_password: value("current_password"), new_password: value("password") };
    const { headers } = await call("PATCH", "auth/me", body);
    localStorage.setItem(TOKEN, headers.get("X-Refreshed-Token"));
    empty("current_password", "password");
    tell(form, say("password_changed"), "good");
  });

  onSubmit("make-key", { key_name: "name" }, async () => {
    const days = value("key_expires");
    const scopes = value("key_scope") === "write" ? ["read", "write"] : ["read"];
    const { content } = await call("POST", "auth/api-keys", { name: value("key_name"), scopes, expires_in_days: days ? Number(days) : null });
    byId("new-key").querySelector("code").textContent = content.key;
    byId("new-key").hidden = false;
    empty("key_name");
    await showKeys();
  });

  byId("new-key")?.querySelector("button").addEventListener("click", async (event) => {
    await navigator.clipboard?.writeText(byId("new-key").querySelector("code").textContent);
    event.target.textContent = say("copied");
  });

  const leave = () => {
    localStorage.removeItem(TOKEN);
    location.assign(`${root}/login`);
  };
  onClick("sign-out", async () => {
    await call("POST", "auth/logout");
    leave();
  });
  onClick("sign-out-everywhere", async () => {
    await call("POST", "auth/logout-everywhere");
    leave();
  });

  onSubmit("delete", { delete_password: "some" }, async () => {
    const sure = byId("sure").checked;
    mark(byId("sure"), sure ? "" : say("sure_expected"));
    if (!sure) return;
    await call("DELETE", "auth/me", { password: value("delete_password") });
    leave();
  });

  const day = (text) => new Date(text).toLocaleDateString(document.documentElement.lang);

  function stateOf(key) {
    const scope = say(key.scopes.includes("write") ? "scope_write" : "scope_read");
    const used = key.last_used_at ? say("used", day(key.last_used_at)) : say("unused");
    const isEnded = key.expires_at && new Date(key.expires_at) < new Date();
    const end = key.revoked_at ? say("revoked") : isEnded ? say("ended") : key.expires_at ? say("ends", day(key.expires_at)) : "";
    return { isOver: Boolean(key.revoked_at || isEnded), text: [`iv_${key.key_id}`, scope, used, end].filter(Boolean).join(" · ") };
  }

  function line(key) {
    const state = stateOf(key);
    const item = document.createElement("li");
    const label = document.createElement("span");
    const details = document.createElement("small");
    label.textContent = key.name;
    details.textContent = state.text;
    label.append(details);
    item.append(label);
    item.classList.toggle("over", state.isOver);
    if (!state.isOver) item.append(revoker(key));
    return item;
  }

  function revoker(key) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.textContent = say("revoke");
    button.setAttribute("aria-label", `${say("revoke")}: ${key.name}`);
    button.addEventListener("click", () => {
      if (!window.confirm(say("revoke_sure", key.name))) return;
      void working(byId("make-key"), [button], async () => {
        await call("DELETE", `auth/api-keys/${key.key_id}`);
        await showKeys();
      });
    });
    return button;
  }

  async function showKeys() {
    const { content } = await call("GET", "auth/api-keys");
    byId("keys").replaceChildren(...content.map(line));
    byId("no-keys").hidden = content.length > 0;
  }

  async function showAccount() {
    if (!localStorage.getItem(TOKEN)) return leave();
    await working(byId("reading"), [], async () => {
      const { content } = await call("GET", "auth/me");
      byId("who").textContent = content.email;
      byId("name").value = content.display_name ?? "";
      byId("users").hidden = content.role === "user";
      await showKeys();
      byId("reading").hidden = true;
      byId("account").hidden = false;
    });
  }
  if (page === "account") void showAccount();
  // For the page's own script.
  window.accountPages = { byId, call, leave, say, tell, working, TOKEN };
})();

// Keeps a login alive in a page: an access token that is nearly over is exchanged for the next one, once for all tabs.
//
// The refresh token is in a cookie that no script reads, and is good once: a second use ends the login. So tabs take turns (a lock),
// and whoever gets the turn looks first whether another tab was faster. InvokeAI's interface reads its token from localStorage, and
// hears of a new one by the storage event; requests that it began with the old token get the new one here.
"use strict";
(() => {
  const TOKEN = "auth_token";
  const DEADLINE = "invokeai_session_deadline";
  const LOCK = "invokeai_session_refresh";
  const SENT = "invokeai_session_sent";
  // Refreshed in the background with this much left, and before a request with this little left.
  const EARLY_MS = 5 * 60_000;
  const LATE_MS = 20_000;
  const LOOK_EVERY_MS = 20_000;
  const GIVE_UP_MS = 60_000;
  // How long the answer to a page that was left in the middle may still be under way, with the next cookie in it.
  const SETTLE_MS = 8_000;

  const script = document.currentScript;
  const base = new URL("../../", script.src);
  const refreshUrl = new URL("api/v1/auth/refresh", base).href;
  const plainFetch = window.fetch.bind(window);
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  let inFlight = null;
  let over = null; // The token whose login has ended: asking again would only be counted against us.
  let notBefore = 0;

  const readToken = () => localStorage.getItem(TOKEN);

  function claimsOf(token) {
    try {
      const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
      return JSON.parse(atob(part));
    } catch {
      return null;
    }
  }

  // By this computer's clock, which may be hours away from the server's: only the token's lifetime is taken from the token.
  function noteFresh(token) {
    const claims = claimsOf(token);
    if (claims) localStorage.setItem(DEADLINE, `${token.slice(-16)}:${Date.now() + (claims.exp - claims.iat) * 1000}`);
  }

  function millisecondsLeft(token) {
    const [tail, at] = (localStorage.getItem(DEADLINE) ?? "").split(":");
    if (tail === token.slice(-16)) return Number(at) - Date.now();
    const claims = claimsOf(token);
    return claims ? claims.exp * 1000 - Date.now() : Infinity;
  }

  const isDue = (token, left) => Boolean(token) && token !== over && Date.now() >= notBefore && millisecondsLeft(token) <= left;

  // One tab at a time. Browsers offer locks to https and localhost only; elsewhere a lease in localStorage takes their place.
  async function alone(work) {
    if (navigator.locks) return navigator.locks.request(LOCK, work);
    const me = crypto.getRandomValues(new Uint32Array(2)).join("-");
    const holder = () => (localStorage.getItem(LOCK) ?? "").split(":");
    const release = () => {
      if (holder()[0] === me) localStorage.removeItem(LOCK);
    };
    window.addEventListener("pagehide", release);
    for (;;) {
      const [owner, until] = holder();
      if (!owner || Number(until) < Date.now()) {
        localStorage.setItem(LOCK, `${me}:${Date.now() + GIVE_UP_MS + 5000}`);
        await sleep(60 + 60 * Math.random());
        if (holder()[0] === me) break;
      }
      await sleep(100);
    }
    try {
      return await work();
    } finally {
      release();
      window.removeEventListener("pagehide", release);
    }
  }

  // A page that is left gives its turn away, while its request goes on: the cookie of now is spent then, and the next one not here yet.
  async function othersAnswer() {
    const age = Date.now() - Number(localStorage.getItem(SENT) ?? 0);
    if (age >= 0 && age < SETTLE_MS) await sleep(SETTLE_MS - age);
  }

  function hand(before, token) {
    noteFresh(token);
    localStorage.setItem(TOKEN, token);
    // Other tabs hear it from the browser, this one does not.
    const change = { key: TOKEN, oldValue: before, newValue: token, storageArea: localStorage, url: location.href };
    window.dispatchEvent(new StorageEvent("storage", change));
  }

  // Refused by the server, and nothing to exchange it with: InvokeAI's interface goes to its login page when its token is gone.
  function end(token) {
    if (readToken() !== token) return;
    localStorage.removeItem(TOKEN);
    const change = { key: TOKEN, oldValue: token, newValue: null, storageArea: localStorage, url: location.href };
    window.dispatchEvent(new StorageEvent("storage", change));
  }

  async function exchange(left) {
    if (!isDue(readToken(), left)) return;
    await othersAnswer();
    const token = readToken();
    let answer;
    localStorage.setItem(SENT, String(Date.now()));
    try {
      // keepalive: a page that is closed now must still get its next cookie, or the spent one would come again.
      answer = await plainFetch(refreshUrl, {
        method: "POST",
        credentials: "same-origin",
        cache: "no-store",
        keepalive: true,
        headers: { "X-Session-Refresh": "1" },
        signal: AbortSignal.timeout(GIVE_UP_MS),
      });
    } catch {
      // Also what a page hears that is being left: SENT stays for whoever comes next.
      notBefore = Date.now() + 10_000;
      return;
    }
    localStorage.removeItem(SENT);
    if (answer.status === 401 || answer.status === 403) {
      over = token;
      // A token that came without a refresh cookie may be good for a while.
      askWhetherItStands();
    } else if (!answer.ok) notBefore = Date.now() + 1000 * (Number(answer.headers.get("Retry-After")) || 10);
    else {
      const session = await answer.json();
      // Signed out meanwhile, or somebody else is in: then this answer is nobody's.
      if (readToken() !== token) return;
      if (session.user.user_id === claimsOf(token)?.user_id) hand(token, session.token);
      else over = token;
    }
  }

  // The answer is dealt with where it arrives (fetchSignedIn).
  function askWhetherItStands() {
    window.fetch(new URL("api/v1/auth/me", base), { headers: { Authorization: `Bearer ${readToken()}` } }).catch(() => {});
  }

  async function renew(left) {
    if (!isDue(readToken(), left)) return;
    inFlight ??= alone(() => exchange(left)).finally(() => {
      inFlight = null;
    });
    await inFlight;
  }

  function bearerOf(headers) {
    const [scheme, token] = (headers.get("Authorization") ?? "").split(" ");
    return scheme.toLowerCase() === "bearer" && token ? token : null;
  }

  function isOwn(input) {
    const url = new URL(input instanceof Request ? input.url : String(input), location.href);
    return url.origin === base.origin && url.pathname.startsWith(`${base.pathname}api/`);
  }

  // Before anybody is in, InvokeAI's interface asks for its saved state dozens of times: the server would only refuse.
  const isState = (input) => new URL(input instanceof Request ? input.url : String(input), location.href).pathname.includes("/api/v1/client_state/");

  const sameUser = (one, other) => claimsOf(one)?.user_id === claimsOf(other)?.user_id;

  async function fetchSignedIn(input, init, headers, sent) {
    await renew(LATE_MS);
    const current = readToken();
    const swapped = Boolean(current) && current !== sent && sameUser(current, sent);
    if (swapped) headers.set("Authorization", `Bearer ${current}`);
    const answer = await plainFetch(input, swapped ? { ...init, headers } : init);
    const method = (init?.method ?? (input instanceof Request ? input.method : "GET")).toUpperCase();
    // A clock that is wrong, or a login that another process ended: ask once, and repeat what changes nothing.
    if (answer.status !== 401 || !current || !["GET", "HEAD"].includes(method)) return answer;
    if (readToken() === current) await renew(Infinity);
    if (over === current) end(current);
    const next = readToken();
    if (!next || next === current || !sameUser(next, sent)) return answer;
    headers.set("Authorization", `Bearer ${next}`);
    return plainFetch(input, { ...init, headers });
  }

  async function noteAnswer(input, answer) {
    const refreshed = answer.headers.get("X-Refreshed-Token");
    if (refreshed) noteFresh(refreshed);
    const path = new URL(input instanceof Request ? input.url : String(input), location.href).pathname;
    if (!answer.ok || !/\/auth\/(login|verify-email)$/.test(path)) return;
    const session = await answer.clone().json();
    noteFresh(session.token);
  }

  // InvokeAI's page of users lets in whom it takes for an is_admin, which is a super_admin. Admins look after accounts too: there, and
  // only there, they are shown as one. What they may do the server decides.
  async function opened(input, answer) {
    const path = new URL(input instanceof Request ? input.url : String(input), location.href).pathname;
    if (!answer.ok || !path.endsWith("/auth/me") || !/\/admin\/users\/?$/.test(location.pathname)) return answer;
    const me = await answer.clone().json();
    if (me.role !== "admin") return answer;
    return new Response(JSON.stringify({ ...me, is_admin: true }), { status: answer.status, headers: { "Content-Type": "application/json" } });
  }

  window.fetch = async (input, init) => {
    if (!isOwn(input)) return plainFetch(input, init);
    const headers = new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined));
    const sent = bearerOf(headers);
    if (!sent && !readToken() && isState(input)) return new Response("null", { status: 401 });
    const answer = sent ? await fetchSignedIn(input, init, headers, sent) : await plainFetch(input, init);
    await noteAnswer(input, answer);
    return opened(input, answer);
  };

  // A login that is ended takes its socket with it, and the interface would only stand still: so ask whether this one still stands.
  window.WebSocket = class extends window.WebSocket {
    constructor(...how) {
      super(...how);
      this.addEventListener("close", () => {
        if (readToken()) askWhetherItStands();
      });
    }
  };

  const look = () => void renew(EARLY_MS);
  setInterval(look, LOOK_EVERY_MS);
  for (const event of ["focus", "online", "pageshow"]) window.addEventListener(event, look);
  document.addEventListener("visibilitychange", look);
  look();

  // Ways that InvokeAI's interface does not have: they stand beside its own pages, outside of what React looks after.
  const signup = script.dataset.signup;
  if (signup === undefined) return;
  const korean = navigator.language.toLowerCase().startsWith("ko");
  const say = (en, ko) => (korean ? ko : en);
  const WAYS = {
    login: [
      ...(signup === "open" ? [["account/sign-up", say("Create an account", "계정 만들기")]] : []),
      ["account/forgot-password", say("Forgot password?", "비밀번호를 잊으셨나요?")],
    ],
    profile: [["account", say("API keys, sign out everywhere, delete account", "API 키, 모든 기기에서 로그아웃, 계정 삭제")]],
  };

  function bar(ways) {
    const nav = document.createElement("nav");
    nav.id = "account-ways";
    nav.setAttribute("aria-label", say("Account", "계정"));
    Object.assign(nav.style, {
      position: "fixed", left: "50%", transform: "translateX(-50%)", zIndex: "10", display: "flex", gap: "24px",
      fontFamily: "'Inter Variable', system-ui, sans-serif", fontSize: "14px",
    });
    for (const [path, text] of ways) {
      const link = document.createElement("a");
      link.href = new URL(path, base).href;
      link.textContent = text;
      Object.assign(link.style, { color: "#c9ced6", textDecoration: "underline", textUnderlineOffset: "3px" });
      nav.append(link);
    }
    return nav;
  }

  let shown = null;
  function showWays() {
    const page = location.pathname.slice(base.pathname.length).replace(/\/$/, "");
    const ways = WAYS[page];
    if (shown && shown.page !== page) {
      shown.nav.remove();
      shown = null;
    }
    if (!ways || !document.querySelector("#root form, #root input")) return;
    if (!shown) {
      shown = { page, nav: bar(ways) };
      document.body.append(shown.nav);
    }
    const form = document.querySelector("#root form");
    const below = form ? form.getBoundingClientRect().bottom + 44 : Infinity;
    shown.nav.style.top = `${Math.round(Math.min(below, window.innerHeight - 48))}px`;
  }
  setInterval(showWays, 300);
})();

// The page of plan and credits: shows what the API says, and asks it for changes. What is paid is paid on Stripe's own pages.
"use strict";
(() => {
  const { byId, call, leave, say, tell, working, TOKEN } = window.accountPages;
  const content = byId("billing");
  if (!content) return;
  const language = document.documentElement.lang;
  const WAITS_MS = [2000, 3000, 5000, 8000, 12000];
  const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
  const day = (text) => new Date(text).toLocaleDateString(language, { year: "numeric", month: "long", day: "numeric" });
  const count = (number) => Number(number).toLocaleString(language);
  const money = (amount, currency) => Number(amount).toLocaleString(language, { style: "currency", currency: currency.toUpperCase() });
  const sells = Boolean(byId("packs"));

  function element(tag, text, className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = className;
    return made;
  }

  // One click is one key; a click that got no answer is asked again with the same one, so that nothing is bought twice.
  const keys = new Map();
  const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  async function once(method, path, body) {
    const asked = JSON.stringify([method, path, body]);
    if (!keys.has(asked)) keys.set(asked, newKey());
    try {
      const { content: answer } = await call(method, path, body, keys.get(asked));
      keys.delete(asked);
      return answer;
    } catch (error) {
      if (error.status < 500) keys.delete(asked);
      throw error;
    }
  }

  function act(button, work) {
    const place = button.closest("section");
    place.querySelector(".message").hidden = true;
    void working(place, content.querySelectorAll("button:not(:disabled)"), async () => {
      try {
        await work(place);
      } catch (error) {
        // A change that waits for its payment is one all the same.
        if (error.code === "payment_open") await show();
        throw error;
      }
    });
  }

  const pay = (path, body) => async () => location.assign((await once("POST", path, body)).url);

  const change = (method, path, body) => async (place) => {
    await once(method, path, body);
    await show();
    tell(place, say("changed"), "good");
  };

  function button(text, isQuiet, onClick) {
    const made = element("button", text, isQuiet ? "quiet" : "");
    made.type = "button";
    made.addEventListener("click", () => onClick(made));
    return made;
  }

  const nameOf = (plans, slug) => plans.find((plan) => plan.slug === slug)?.name ?? slug;
  // What an operator gave has no checkout beside it.
  const isByContract = (my) => !my.billed && my.status === "active" && my.plan?.plan_type === "paid";

  function showPlan(my, plans) {
    byId("plan-name").textContent = my.plan?.name ?? say("no_plan");
    byId("plan-state").textContent = say(my.suspended && my.status === "past_due" ? "suspended" : `status_${my.status}`);
    byId("plan-state").hidden = my.status === "none";
    byId("plan-period").textContent = periodOf(my);
    byId("notices").replaceChildren(...noticesOf(my, plans).map((text) => element("li", text)));
    if (!sells) return;
    byId("portal").hidden = my.status === "none";
    byId("portal").className = my.payment_open ? "" : "quiet";
    byId("cancel").hidden = !my.billed || my.cancel_at_period_end;
    byId("reactivate").hidden = !my.billed || !my.cancel_at_period_end;
    byId("cancel").dataset.ends = my.current_period_end ?? "";
  }

  function periodOf(my) {
    // A tester's window has no period; the row is then of an earlier subscription.
    if (!my.current_period_end || (my.plan && my.plan.slug !== my.plan_slug)) return "";
    const [begins, ends] = [day(my.current_period_start), day(my.trial_end && my.status === "trialing" ? my.trial_end : my.current_period_end)];
    if (["canceled", "expired"].includes(my.status)) return say("ended_on", ends);
    return say(my.billed && !my.cancel_at_period_end ? "renews" : "runs", begins, ends);
  }

  function noticesOf(my, plans) {
    const found = [];
    if (my.pending_plan_slug) found.push(say("notice_pending", nameOf(plans, my.pending_plan_slug)));
    if (my.status === "past_due") found.push(my.suspended ? say("notice_suspended") : say("notice_unpaid", day(my.grace_until)));
    if (my.billed && my.cancel_at_period_end) found.push(say("notice_ends", day(my.current_period_end)));
    else if (my.next_plan_slug) found.push(say("notice_next", day(my.current_period_end), nameOf(plans, my.next_plan_slug)));
    if (isByContract(my)) found.push(say("notice_contract"));
    return found;
  }

  function showCredits(balance, grants) {
    byId("available").textContent = count(balance.remaining_credits);
    byId("held").textContent = count(balance.held_credits);
    byId("minutes").textContent = count(balance.remaining_minutes);
    fill("grants", "no-grants", grants, (grant) => [
      [say(`from_${grant.source}`)], [count(grant.available_credits), "number"], [day(grant.valid_until)],
    ]);
  }

  function showMovements(items) {
    fill("movements", "no-movements", items, (moved) => [
      [day(moved.created_at)], [say(`type_${moved.transaction_type}`), "", moved.description],
      [`${moved.amount > 0 ? "+" : ""}${count(moved.amount)}`, "number"],
    ]);
  }

  function fill(table, nothing, items, cellsOf) {
    byId(table).hidden = items.length === 0;
    byId(nothing).hidden = items.length > 0;
    byId(table).querySelector("tbody").replaceChildren(...items.map((item) => {
      const row = document.createElement("tr");
      for (const [text, className, small] of cellsOf(item)) {
        const cell = element("td", text, className);
        if (small) cell.append(element("small", small));
        row.append(cell);
      }
      return row;
    }));
  }

  function linesOf(plan) {
    const orNoLimit = (number) => (number === null ? say("no_limit") : count(number));
    const video = plan.max_video_frames === null ? say("video") : say("video_frames", count(plan.max_video_frames));
    return [
      plan.monthly_credits === null ? say("credits_by_contract") : say(plan.plan_type === "trial" ? "some_credits" : "credits_a_month", count(plan.monthly_credits)),
      plan.can_generate_video ? video : say("no_video"),
      say("jobs_at_once", orNoLimit(plan.max_queues)),
      say("storage", plan.max_storage_gb === null ? say("no_limit") : `${count(plan.max_storage_gb)} GB`),
    ];
  }

  function card(plan, my, plans) {
    const item = document.createElement("li");
    const free = Number(plan.monthly_price) === 0 && plan.monthly_price !== null;
    const price = plan.monthly_price === null ? say("by_contract") : free ? say("free") : say("a_month", money(plan.monthly_price, plan.currency));
    item.append(element("strong", plan.name), element("span", price, "price"), ...linesOf(plan).map((text) => element("span", text)), doing(plan, my, plans));
    item.classList.toggle("chosen", plan.slug === my.plan?.slug);
    return item;
  }

  // What can be done about a plan: a button, or the words why there is none.
  function doing(plan, my, plans) {
    const note = (text) => element("span", text, "note");
    const isMine = plan.slug === my.plan?.slug;
    if (isMine && !(my.billed && my.next_plan_slug)) return note(say("yours"));
    if (!my.billed && (!sells || isByContract(my) || plan.plan_type === "trial")) return note("");
    if (!plan.for_sale) return note(plan.plan_type === "paid" ? say("ask_us") : "");
    if (!my.billed) return button(say("subscribe"), false, (made) => act(made, pay("subscriptions/subscribe", { plan_id: plan.slug })));
    if (plan.slug === my.next_plan_slug) return note(say("from_then", day(my.current_period_end)));
    return changer(plan, my, plans, isMine);
  }

  function changer(plan, my, plans, isMine) {
    const now = plans.find((each) => each.slug === my.plan_slug);
    const isDearer = Number(plan.monthly_price) > Number(now?.monthly_price ?? 0);
    const sure = isMine ? "" : isDearer ? say("upgrade_sure", plan.name) : say("downgrade_sure", plan.name, day(my.current_period_end));
    const made = button(say(isMine ? "keep" : "change_to", plan.name), !isDearer, () => {
      if (sure && !window.confirm(sure)) return;
      act(made, change("PUT", "subscriptions/change-plan", { plan_id: plan.slug }));
    });
    // As the server would say: what is open or canceled is settled first.
    made.disabled = my.payment_open || my.cancel_at_period_end;
    made.classList.toggle("off", made.disabled);
    return made;
  }

  function showPacks(my) {
    if (!sells) return;
    const mayBuy = Boolean(my.plan) && !my.suspended;
    byId("packs").hidden = !mayBuy;
    byId("packs-text").hidden = !mayBuy;
    byId("no-packs").hidden = mayBuy;
  }

  async function show() {
    const paths = ["subscriptions/my", "subscriptions/plans", "credits/balance", "credits/grants", "credits/transactions?limit=10"];
    const [my, plans, balance, grants, moved] = (await Promise.all(paths.map((path) => call("GET", path)))).map((answer) => answer.content);
    showPlan(my, plans);
    showCredits(balance, grants);
    byId("plans").replaceChildren(...plans.filter((plan) => plan.plan_type === "paid" || plan.slug === my.plan?.slug).map((plan) => card(plan, my, plans)));
    showPacks(my);
    showMovements(moved.items);
    byId("reading").hidden = true;
    content.hidden = false;
    return JSON.stringify([my.plan?.slug, my.status, balance.total_credits]);
  }

  function announce(text, kind) {
    byId("returned").textContent = text;
    byId("returned").className = `message ${kind}`;
    byId("returned").hidden = false;
  }

  // The money reaches us by another way than the customer, mostly within seconds.
  async function waitForMoney(before) {
    for (const wait of WAITS_MS) {
      await sleep(wait);
      if ((await show()) !== before) return announce(say("arrived"), "good");
    }
  }

  async function begin() {
    if (!localStorage.getItem(TOKEN)) return leave();
    const query = new URLSearchParams(location.search);
    const returned = query.get("checkout");
    query.delete("checkout");
    // Said once: a page that is read again is as any other.
    if (returned) history.replaceState(null, "", [location.pathname, query].filter((part) => String(part)).join("?"));
    await working(byId("reading"), [], async () => {
      const before = await show();
      if (returned === "success") announce(say("paid"), "good");
      if (returned === "canceled") announce(say("not_paid"), "");
      if (returned === "success") await waitForMoney(before);
    });
  }

  for (const place of content.querySelectorAll("[data-credits]")) place.textContent = say("some_credits", count(place.dataset.credits));
  for (const place of content.querySelectorAll("[data-price]")) place.textContent = money(place.dataset.price, place.dataset.currency);
  for (const made of content.querySelectorAll("[data-pack]")) {
    made.addEventListener("click", () => act(made, pay("credits/purchase", { pack: made.dataset.pack })));
  }
  byId("portal")?.addEventListener("click", (event) => act(event.target, pay("subscriptions/portal")));
  byId("reactivate")?.addEventListener("click", (event) => act(event.target, change("POST", "subscriptions/reactivate")));
  byId("cancel")?.addEventListener("click", (event) => {
    if (window.confirm(say("cancel_sure", day(event.target.dataset.ends)))) act(event.target, change("POST", "subscriptions/cancel"));
  });
  // Back from Stripe by the browser's button: the page is as it was left.
  window.addEventListener("pageshow", (event) => event.persisted && void begin());
  void begin();
})();

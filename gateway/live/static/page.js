// A user's stream on one page. State is what the snapshot and the messages after it say; the page only shows it.
"use strict";

const ROWS_MAX = 200;          // more rows than anybody reads; the API has the rest
const EVENTS_MAX = 24;
const LATENCIES_MAX = 50;
const GONE_MS = 4000;          // a removed row stays this long, struck out
const FRESH_MS = 4000;         // how long a new row and a changed value are marked; page.css has the same times
const CHANGED_MS = 3000;
const DRAW_MS = 100;           // two hundred rows are drawn in some 10 ms: at most ten times a second
const RENEW_MS = 120000;       // the token is good for five minutes
const RETRY_MS = [300, 1000, 2000, 5000, 10000, 20000];
const POLICY = 1008;

const find = (id) => document.getElementById(id);
const state = { accounts: new Map(), items: new Map(), transactions: new Map(), chosen: null, latencies: [], count: 0, fresh: new Map(), changed: new Map() };
let token = null, socket = null, attempts = 0, renewing = null, retrying = null, refreshing = null;

// --- connection -----------------------------------------------------------------------------------------------

function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    keep(given);
    history.replaceState(null, "", location.pathname);  // a token has no place in an address that is shared
  }
  token = token || recall();
  token ? connect() : ask("Paste a stream token to see a user’s accounts live.");
}

function keep(value) {
  token = value;
  try { sessionStorage.setItem("token", value); } catch { /* private windows may refuse; this page then forgets */ }
}

function recall() {
  try { return sessionStorage.getItem("token"); } catch { return null; }
}

function connect() {
  clearTimeout(retrying);
  show("connecting", attempts ? "Reconnecting" : "Connecting");
  const address = new URL("/v1/stream", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = socket = new WebSocket(address);
  opened.onopen = () => opened.send(JSON.stringify({ token }));
  opened.onmessage = (message) => { if (opened === socket) take(JSON.parse(message.data)); };
  opened.onclose = (closed) => { if (opened === socket) lost(closed); };
}

function lost(closed) {
  clearInterval(renewing);
  if (closed.code === POLICY) {
    ask(closed.reason.startsWith("more than") ? closed.reason + "." : "This token is not valid, or its five minutes are over.");
    return;
  }
  const wait = RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)] * (0.5 + Math.random());
  show("waiting", `Reconnecting in ${Math.max(1, Math.round(wait / 1000))} s`);
  retrying = setTimeout(connect, wait);
}

function ask(reason) {
  show("ended", "Not connected");
  find("entry").hidden = false;
  find("entry-reason").textContent = reason;
  find("content").hidden = state.count === 0 && state.accounts.size === 0;
  find("token").value = "";
}

find("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  keep(find("token").value.trim());
  find("entry").hidden = true;
  find("content").hidden = false;
  attempts = 0;
  connect();
});

function show(name, text) {
  const pill = find("connection");
  if (pill.dataset.state !== name) pill.dataset.state = name;
  find("connection-text").textContent = text;
}

function renew() {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ renew: true }));
}

function refresh() {
  // So much has changed at once that reading it all again is less: a new connection brings a new snapshot.
  clearTimeout(refreshing);
  refreshing = setTimeout(() => { const old = socket; connect(); old.close(); }, 500);
}

// --- messages -------------------------------------------------------------------------------------------------

function take(message) {
  const { event, data } = message;
  const handler = handlers[event];
  if (event === "stream.token") { if (data.token) keep(data.token); return; }
  if (event.startsWith("initial.")) { handler?.(data); return; }
  measure(message.timestamp);
  handler?.(data, event);
  note(event, data, message.timestamp);
}

const handlers = {
  "initial.balances": (data) => {
    attempts = 0;
    show("live", "Live");
    find("entry").hidden = true;
    find("content").hidden = false;
    clearInterval(renewing);
    renewing = setInterval(renew, RENEW_MS);
    renew();
    state.accounts = new Map(data.accounts.map((account) => [account.account_id, account]));
    state.items = new Map(data.items.map((item) => [item.item_id, item]));
    draw();
  },
  "initial.transactions": (data) => {
    state.transactions = new Map(data.transactions.map((row) => [row.id, row]));
    draw();
  },
  "transaction.added": (data) => put(data, true),
  "transaction.modified": (data) => put(data, false),
  "transaction.removed": (data) => remove(data.id),
  "transactions.changed": () => refresh(),
  "balance.updated": (data) => balance(data),
  "item.linked": (data) => item(data),
  "item.state_changed": (data) => item(data),
  "item.unlinked": (data) => item({ ...data, state: "unlinked" }),
};

const cells = {
  amount: "amount", date: "detail", name: "label", merchant_name: "label", pending: "amount", category_primary: "category", category_detailed: "category",
  "user_fields.name": "label", "user_fields.category": "category", "user_fields.splits": "category", "user_fields.notes": "notes", "user_fields.tags": "tags",
};

function put(data, isNew) {
  const before = state.transactions.get(data.id);
  state.transactions.set(data.id, { ...before, ...data, removed: false });
  if (state.transactions.size > ROWS_MAX) state.transactions.delete(ordered().at(-1).id);
  if (isNew || !before) state.fresh.set(data.id, performance.now());
  else for (const field of data.changed || []) mark(`${data.id} ${cells[field]}`);
  draw();
}

function mark(what) { state.changed.set(what, performance.now()); }

function remove(id) {
  const known = state.transactions.get(id);
  if (!known) return;
  state.transactions.set(id, { ...known, removed: true });
  draw();
  setTimeout(() => {
    if (!state.transactions.get(id)?.removed) return;  // it came back meanwhile, which banks do
    state.transactions.delete(id);
    draw();
  }, GONE_MS);
}

function balance(data) {
  const known = state.accounts.get(data.account_id);
  state.accounts.set(data.account_id, { type: "", ...known, ...data });
  if (known) mark(`${data.account_id} balance`);
  draw();
}

function item(data) {
  state.items.set(data.item_id, { ...state.items.get(data.item_id), ...data });
  draw();
}

// --- figures --------------------------------------------------------------------------------------------------

function measure(timestamp) {
  const late = Math.max(0, Date.now() - Date.parse(timestamp));  // two clocks may differ by some milliseconds
  state.count += 1;
  state.latencies = [...state.latencies.slice(1 - LATENCIES_MAX), late];
  const sorted = [...state.latencies].sort((a, b) => a - b);
  find("latency").textContent = duration(late);
  find("median").textContent = duration(sorted[Math.floor(sorted.length / 2)]);
  find("count").textContent = state.count.toLocaleString();
}

const duration = (ms) => ms < 1000 ? `${Math.round(ms)} ms` : ms < 60000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 60000)} min`;

// --- drawing --------------------------------------------------------------------------------------------------

let drawnAt = -DRAW_MS, drawing = false;
function draw() {
  if (drawing) return;
  drawing = true;
  // Frames are not given to a page that nobody sees: it catches up in one draw when it is looked at again.
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    drawnAt = performance.now();
    drawAlerts();
    drawAccounts();
    drawTransactions();
  }), Math.max(0, drawnAt + DRAW_MS - performance.now()));
}

// A mark goes on where it was when its element is made again: its animation begins as long ago as it did.
function marked(made, name, since, lasts_ms) {
  const age = performance.now() - since;
  if (age < lasts_ms) {
    made.classList.add(name);
    made.style.setProperty("--age", `${-Math.round(age)}ms`);
  }
  return made;
}

const changeable = (id, name, made) => marked(made, "changed", state.changed.get(`${id} ${name}`) ?? -Infinity, CHANGED_MS);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// Amounts are exact decimal text and stay so: Intl takes text, and no number is made of it.
function money(text, currency) {
  if (text === null || text === undefined) return "–";
  try {
    return new Intl.NumberFormat(undefined, { style: "currency", currency, maximumFractionDigits: 18 }).format(text);
  } catch { return `${text} ${currency || ""}`.trim(); }  // a currency without an ISO code
}

const negated = (text) => text.startsWith("-") ? text.slice(1) : /^[0.]*$/.test(text) ? text : `-${text}`;
const words = (text) => (text || "").replaceAll("_", " ").toLowerCase().replace(/^./, (first) => first.toUpperCase());
const day = (date) => new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", timeZone: "UTC" }).format(new Date(`${date}T00:00:00Z`));
const hue = (text) => [...text].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
const accountName = (id) => { const one = state.accounts.get(id); return one ? `${one.name || words(one.subtype) || "Account"}${one.mask ? ` ··${one.mask}` : ""}` : "–"; };

function ordered() {
  return [...state.transactions.values()].sort((a, b) => dated(b).localeCompare(dated(a)) || (b.pending - a.pending) || b.id.localeCompare(a.id));
}

// What the user said goes before what the bank says; "" is said, too.
const dated = (row) => row.display_date || row.date;
const said = (row, field) => row.user_fields?.[field] ?? null;
const labelOf = (row) => (said(row, "name") === null ? row.merchant_name || row.name : row.name) || "Unnamed";
function detailOf(row) {
  if (said(row, "name") !== null) return row.merchant_name || row.bank?.name || "";
  return row.merchant_name && row.name && row.name !== row.merchant_name ? row.name : "";
}
function categoryOf(row) {
  if (row.splits?.length && !row.splits_stale) return row.splits.map((part) => part.category).join(", ");
  return (said(row, "category") === null ? words(row.category) : row.category) || "–";
}

function drawAccounts() {
  const focused = document.activeElement?.dataset?.account;
  find("accounts").replaceChildren(...[...state.accounts.values()].map((account) => {
    const of = state.items.get(account.item_id) || {};
    const owes = account.type === "credit" || account.type === "loan";
    const more = account.available != null ? `${money(account.available, account.currency)} available` : account.limit != null ? `of ${money(account.limit, account.currency)}` : "";
    const card = element("button", { class: "account", type: "button", "data-account": account.account_id, "aria-pressed": String(state.chosen === account.account_id) },
      element("span", { class: "bank" }, [of.institution_name, words(account.subtype || account.type)].filter(Boolean).join(" · ")),
      element("span", { class: "name" }, accountName(account.account_id)),
      changeable(account.account_id, "balance", element("span", { class: "balance" }, money(account.current, account.currency))),
      element("span", { class: "more" }, owes ? [account.current?.startsWith("-") ? "in credit" : "owed", more].filter(Boolean).join(" · ") : more));
    card.addEventListener("click", () => choose(state.chosen === account.account_id ? null : account.account_id));
    return element("li", {}, card);
  }));
  find("accounts").hidden = state.accounts.size === 0;
  find("accounts-empty").hidden = state.accounts.size > 0;
  if (focused) document.querySelector(`[data-account="${CSS.escape(focused)}"]`)?.focus();
}

function choose(account) {
  state.chosen = account;
  draw();
}

find("all").addEventListener("click", () => choose(null));

function drawRow(row) {
  const label = labelOf(row);
  const avatar = element("span", { class: "avatar", "aria-hidden": "true" }, label.slice(0, 1).toUpperCase());
  avatar.style.setProperty("--hue", hue(label));
  const account = state.accounts.get(row.account_id) || {};
  const incoming = row.amount.startsWith("-");
  const can = (name, made) => changeable(row.id, name, made);
  return marked(element("tr", { class: (row.pending ? "pending " : "") + (row.removed ? "removed" : "") },
    element("td", {}, element("span", { class: "what" }, avatar, element("span", {},
      element("span", { class: "line" }, can("label", element("span", { class: "label" }, label)), row.pending ? element("span", { class: "badge" }, "Pending") : null,
        can("tags", element("span", { class: "tags" }, ...(row.tags || []).map((tag) => element("span", { class: "tag" }, tag))))),
      can("detail", element("span", { class: "detail" }, detailOf(row))),
      row.notes ? can("notes", element("span", { class: "detail notes", title: row.notes }, row.notes)) : null))),
    element("td", { class: "soft", title: words(row.category_detailed) }, can("category", element("span", { class: "category" }, categoryOf(row)))),
    element("td", { class: "soft" }, account.name || words(account.subtype) || "–", account.mask ? element("span", { class: "detail" }, `··${account.mask}`) : null),
    element("td", { class: "number" }, can("amount", element("span", { class: incoming ? "amount in" : "amount" }, (incoming ? "+" : "") + money(negated(row.amount), row.currency))))),
  "new", state.fresh.get(row.id) ?? -Infinity, FRESH_MS);
}

// A heading that spans hidden columns would bring them back. The widths are those of page.css.
const narrow = [matchMedia("(max-width: 74rem)"), matchMedia("(max-width: 40rem)")];
const columns = () => String(4 - narrow.filter((one) => one.matches).length);
narrow.forEach((one) => one.addEventListener("change", draw));

function drawTransactions() {
  const rows = ordered().filter((row) => !row.hidden && (!state.chosen || row.account_id === state.chosen));
  const bodies = new Map();
  for (const row of rows) {
    const date = dated(row);
    if (!bodies.has(date)) bodies.set(date, element("tbody", {}, element("tr", {}, element("th", { scope: "rowgroup", colspan: columns() }, day(date)))));
    bodies.get(date).append(drawRow(row));
  }
  const table = find("transactions");
  table.querySelectorAll("tbody").forEach((body) => body.remove());
  table.append(...bodies.values());
  table.hidden = rows.length === 0;
  find("transactions-empty").hidden = rows.length > 0;
  find("all").hidden = state.chosen === null;
  for (const marks of [state.fresh, state.changed]) {
    for (const [what, since] of marks) if (performance.now() - since > FRESH_MS) marks.delete(what);
  }
}

function drawAlerts() {
  const told = {
    login_required: "needs its login again: nothing new comes from it until its user signs in at the bank.",
    pending_disconnect: "will be disconnected soon: its user should renew the consent.",
    pending_expiration: "has a consent that ends soon: its user should renew it.",
    revoked: "was revoked by its user at the bank.", gone: "is no longer known to Plaid.",
  };
  const alerts = [...state.items.values()].filter((one) => told[one.state] && !one.unlinked);
  find("alerts").replaceChildren(...alerts.map((one) => element("p", { class: "alert" }, `${one.institution_name || "A bank"} ${told[one.state]}`)));
}

let spokenAt = 0;
function note(event, data, timestamp) {
  const kind = event.split(".").at(-1);
  const told = event.startsWith("transaction.")
    ? `${labelOf(data)} ${money(negated(data.amount || "0"), data.currency)}${data.changed?.length ? ` · ${data.changed.map((one) => words(one.replace("user_fields.", "")).toLowerCase()).join(", ")}` : ""}`
    : event === "balance.updated" ? `${money(data.current, data.currency)} · ${accountName(data.account_id)}`
    : event === "transactions.changed" ? `${data.added} added, ${data.modified} modified, ${data.removed} removed`
    : [data.institution_name, words(data.state)].filter(Boolean).join(" · ");
  const list = find("events");
  list.prepend(element("li", { class: kind }, element("span", { class: "event" }, element("span", {}, event), element("span", {}, duration(Math.max(0, Date.now() - Date.parse(timestamp))))), element("span", { class: "told", title: told }, told)));
  while (list.children.length > EVENTS_MAX) list.lastChild.remove();
  find("events-empty").hidden = true;
  if (Date.now() - spokenAt > 10000) {  // a screen reader hears of changes, not of every one
    spokenAt = Date.now();
    find("spoken").textContent = `${words(kind)}: ${told}`;
  }
}

begin();

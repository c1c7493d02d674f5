// The dashboard's few moving parts. Everything works without them: they follow new calls, copy, and take keys.

const LIVE_MS = 2000;
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function remember(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* storage may be switched off */ }
  return null;
}

// -- theme --
$("[data-theme-switch]")?.addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const next = (root.dataset.theme ?? system) === "dark" ? "light" : "dark";
  root.dataset.theme = next;
  remember("airi-theme", next);
});

// -- copying --
async function copy(button, text) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    button.textContent = "press Ctrl+C";
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "unseen";
    document.body.append(field);
    field.select();
    setTimeout(() => field.remove(), 10_000);
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy], [data-copy-from]");
  if (!button) return;
  copy(button, button.dataset.copy ?? document.getElementById(button.dataset.copyFrom).textContent);
});

// -- following --
// The page is asked again for its changing part, with the very URL in the address bar, so that filters hold.
const part = $("[data-fragment]");
let timer = 0;
let asking = null;

async function refresh() {
  if (document.hidden || asking) return;
  asking = new AbortController();
  try {
    const answer = await fetch(location.href, { headers: { "x-airi-fragment": "1" }, signal: asking.signal });
    if (answer.status === 401) { location.reload(); return; }
    if (!answer.ok) return;
    const selected = $("tr.selected", part)?.dataset.id;
    const known = new Set($$("tr[data-id]", part).map((row) => row.dataset.id));
    const open = new Set($$("details[open][id]", part).map((d) => d.id));
    part.innerHTML = await answer.text();
    for (const row of $$("tr[data-id]", part)) {
      if (known.size && !known.has(row.dataset.id)) row.classList.add("fresh");
      if (row.dataset.id === selected) row.classList.add("selected");
    }
    for (const id of open) document.getElementById(id)?.setAttribute("open", "");
    part.dispatchEvent(new CustomEvent("refreshed"));
  } catch { /* the next tick asks again */ } finally {
    asking = null;
  }
}

const live = $("[data-live]");
function follow(on) {
  clearInterval(timer);
  live?.setAttribute("aria-pressed", String(on));
  if (on) { refresh(); timer = setInterval(refresh, LIVE_MS); }
}
if (live && part) {
  live.addEventListener("click", () => {
    const on = live.getAttribute("aria-pressed") !== "true";
    remember("airi-live", on ? "1" : "0");
    follow(on);
  });
  const paged = new URLSearchParams(location.search).has("cursor");
  follow(!paged && remember("airi-live") !== "0");
} else if (part?.dataset.fragment === "while-running") {
  // A run's page follows by itself as long as the run goes on.
  timer = setInterval(() => { if ($("[data-running]", part)) refresh(); else clearInterval(timer); }, 1000);
}

// -- forms --
$("[data-filters]")?.addEventListener("submit", (event) => {
  for (const field of $$("input, select", event.target)) if (!field.value) field.disabled = true;
});
$("[data-filters] select[name=outcome]")?.addEventListener("change", (event) => event.target.form.requestSubmit());
document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});
document.addEventListener("click", (event) => {
  const drawer = $("details.more[open]");
  if (drawer && !drawer.contains(event.target)) drawer.open = false;
});

// -- keys --
function rows() { return $$("[data-rows] tbody tr"); }
function move(step) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => row.classList.contains("selected"));
  const next = all[Math.min(Math.max(at + step, 0), all.length - 1)];
  all[at]?.classList.remove("selected");
  next.classList.add("selected");
  $("a", next)?.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "Escape") { event.target.blur?.(); const drawer = $("details.more[open]"); if (drawer) drawer.open = false; }
  if (typing) return;
  if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "/") { $("input[type=search]")?.focus(); event.preventDefault(); }
  else if (event.key === "u") $(".crumb a")?.click();
  else if (event.key === "l") live?.click();
});
document.addEventListener("click", (event) => {
  const row = event.target.closest?.("[data-rows] tbody tr");
  if (!row || event.target.closest("a, button") || String(getSelection())) return;
  $("a", row)?.click();
});

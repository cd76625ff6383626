// Makes two-users.png: VS Code of two users at one address.
//
//     node docs/images/two-users.mjs
//
// Needs Node 24, cargo, code-server, chromium, pngquant and optipng. Starts the quickstart with a real code-server for
// each user, opens its address in two browser profiles, and puts both pages into one picture. The frames around the
// pages are drawn.

import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const PICTURE = fileURLToPath(new URL("two-users.png", import.meta.url));
const ROOT = fileURLToPath(new URL("../..", import.meta.url));

// A page in CSS pixels, and how many pixels of the picture one of them becomes.
const PAGE = { width: 620, height: 430 };
const SCALE = 1.25;
/** In milliseconds. */
const PATIENCE = 120_000;

const USERS = [
  {
    name: "alice",
    theme: "Default Light Modern",
    opened: "hello.rs",
    files: {
      "Cargo.toml": '[package]\nname = "hello"\nversion = "0.1.0"\nedition = "2024"\n',
      "alice/hello.rs": `//! Alice's first program.

use std::env;

fn main() {
    let mut args = env::args();
    let name = args.nth(1);

    greet(name.as_deref());
}

fn greet(name: Option<&str>) {
    let name = name.unwrap_or("you");
    println!("Hello, {name}!");
}
`,
    },
  },
  {
    name: "bob",
    theme: "Default Dark Modern",
    opened: "main.py",
    files: {
      "README.md": "# Word count\n\nCounts the words of a text.\n",
      "bob/main.py": `"""Bob's word counter."""

import sys
from collections import Counter


def main():
    words = sys.stdin.read().split()
    counts = Counter(words)
    for word, count in counts.items():
        print(f"{count:6} {word}")


main()
`,
    },
  },
];

const settings = (theme) => ({
  "workbench.colorTheme": theme,
  "workbench.startupEditor": "none",
  "workbench.layoutControl.enabled": false,
  "workbench.secondarySideBar.defaultVisibility": "hidden",
  "workbench.navigationControl.enabled": false,
  "security.workspace.trust.enabled": false,
  "chat.disableAIFeatures": true,
  "extensions.ignoreRecommendations": true,
  "editor.minimap.enabled": false,
  "editor.fontSize": 14,
  "editor.lineNumbersMinChars": 3,
  "window.commandCenter": false,
  "window.menuBarVisibility": "compact",
});

async function until(what, condition) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited too long for ${what}`);
    await pause(100);
  }
}

/** Starts the quickstart and returns its process, its address and the folder of its workspaces. */
async function quickstart(folder) {
  const flags = ["run", "--quiet", "--example", "quickstart", "--", "--code-server"];
  const child = spawn("cargo", flags, {
    cwd: ROOT,
    env: { ...process.env, TMPDIR: folder },
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const line of createInterface(child.stdout)) {
    const address = line.match(/^ready: (.*)$/)?.[1];
    if (address) {
      const [own] = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isDirectory());
      return { child, address, workspaces: join(folder, own.name) };
    }
  }
  throw new Error("the quickstart ended");
}

function fillWorkspace(workspaces, { name, theme, files }) {
  const write = (path, text) => {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, text);
  };
  write(join(workspaces, name, "data/User/settings.json"), JSON.stringify(settings(theme)));
  for (const [path, text] of Object.entries(files)) {
    write(join(workspaces, name, "project", path), text);
  }
}

/** A headless browser with a profile of its own, and one page. */
class Browser {
  #socket;
  #calls = new Map();
  #last = 0;

  static async start(profile) {
    const browser = new Browser();
    const flags = ["--headless=new", "--no-first-run", "--remote-debugging-port=0", "--hide-scrollbars", "--lang=en-US"];
    if (process.getuid() === 0) flags.push("--no-sandbox");
    browser.child = spawn("chromium", [...flags, `--user-data-dir=${profile}`, "about:blank"], { stdio: "ignore" });
    const port = await until("the browser", () => {
      try {
        return readFileSync(join(profile, "DevToolsActivePort"), "utf8").split("\n")[0];
      } catch {
        return undefined;
      }
    });
    const targets = await (await fetch(`http://127.0.0.1:${port}/json`)).json();
    const page = targets.find(({ type }) => type === "page");
    browser.#socket = new WebSocket(page.webSocketDebuggerUrl);
    browser.#socket.onmessage = ({ data }) => {
      const { id, result, error } = JSON.parse(data);
      const call = browser.#calls.get(id);
      browser.#calls.delete(id);
      if (error) call?.reject(new Error(error.message));
      else call?.resolve(result);
    };
    await new Promise((resolve, reject) => Object.assign(browser.#socket, { onopen: resolve, onerror: reject }));
    return browser;
  }

  call(method, params = {}) {
    const id = ++this.#last;
    this.#socket.send(JSON.stringify({ id, method, params }));
    return new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
  }

  async evaluate(expression) {
    const { result } = await this.call("Runtime.evaluate", { expression, returnByValue: true });
    return result.value;
  }

  async open(address, { width, height }, scale) {
    await this.call("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: scale, mobile: false });
    await this.call("Page.navigate", { url: address });
  }

  async press(event) {
    await this.call("Input.dispatchKeyEvent", { type: "keyDown", ...event });
    await this.call("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  /** A screenshot as base64. */
  async picture() {
    return (await this.call("Page.captureScreenshot", { format: "png" })).data;
  }

  end() {
    this.child.kill();
  }
}

const CONTROL_P = { key: "p", code: "KeyP", windowsVirtualKeyCode: 80, modifiers: 2 };
const ENTER = { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13, text: "\r" };

/** Signs the user in, opens their file, and returns the page's address and picture. */
async function visit(browser, address, { name, opened }) {
  await browser.open(`${address}quickstart/pick?user=${name}`, PAGE, SCALE);
  await until(`the files of ${name}`, () =>
    browser.evaluate(`document.querySelector(".explorer-folders-view .monaco-list-row") !== null`));
  await browser.press(CONTROL_P);
  await until("the list of files", () =>
    browser.evaluate(`document.querySelector(".quick-input-widget input") === document.activeElement`));
  await browser.call("Input.insertText", { text: opened });
  await until(opened, () =>
    browser.evaluate(`document.querySelector(".quick-input-list .monaco-list-row")?.ariaLabel?.includes("${opened}")`));
  await browser.press(ENTER);
  await until(`${opened} in the editor`, () =>
    browser.evaluate(`document.querySelector(".tab.active")?.textContent.includes("${opened}") &&
      document.querySelector(".view-lines")?.innerText.includes("main")`));
  // Colours come from a grammar that loads after the text.
  await until("colours", () =>
    browser.evaluate(`new Set([...document.querySelectorAll(".view-lines span")].map((part) => part.className)).size > 4`));
  await pause(1000);
  return { origin: await browser.evaluate("location.origin"), picture: await browser.picture() };
}

const frame = ({ name }, { origin, picture }) => `
  <figure>
    <header><i></i><i></i><i></i><span class="address">${origin}/</span><b>${name}</b></header>
    <img src="data:image/png;base64,${picture}" width="${PAGE.width}" height="${PAGE.height}">
  </figure>`;

const together = (visits) => `<!doctype html><meta charset="utf-8"><style>
  body { margin: 0; padding: 12px; display: flex; gap: 12px; background: #fff; font: 14px "DejaVu Sans", sans-serif }
  figure { margin: 0; border: 1px solid #8c959f; border-radius: 8px; overflow: hidden }
  header { display: flex; align-items: center; gap: 6px; padding: 7px 10px; background: #e7eaee; color: #1f2328 }
  i { width: 11px; height: 11px; border-radius: 50%; background: #afb8c1 }
  .address { flex: 1; margin: 0 8px; padding: 4px 12px; border-radius: 12px; background: #fff }
  img { display: block }
</style>${USERS.map((user, at) => frame(user, visits[at])).join("")}`;

const folder = mkdtempSync(join(tmpdir(), "two-users-"));
const ends = [() => rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 })];
try {
  const temporary = join(folder, "quickstart");
  mkdirSync(temporary);
  const { child, address, workspaces } = await quickstart(temporary);
  ends.unshift(async () => {
    child.kill("SIGINT");
    await new Promise((resolve) => child.once("exit", resolve));
  });
  const visits = [];
  for (const user of USERS) {
    fillWorkspace(workspaces, user);
    const browser = await Browser.start(join(folder, `profile-${user.name}`));
    ends.unshift(() => browser.end());
    visits.push(await visit(browser, address, user));
  }
  const page = join(folder, "together.html");
  writeFileSync(page, together(visits));
  const browser = await Browser.start(join(folder, "profile"));
  ends.unshift(() => browser.end());
  const size = { width: 2 * (PAGE.width + 2) + 3 * 12, height: PAGE.height + 2 + 2 * 12 + 38 };
  await browser.open(`file://${page}`, size, SCALE);
  await until("the pictures", () =>
    browser.evaluate(`document.images.length === 2 && [...document.images].every((image) => image.complete)`));
  writeFileSync(PICTURE, Buffer.from(await browser.picture(), "base64"));
  execFileSync("pngquant", ["--force", "--skip-if-larger", "--output", PICTURE, "--quality", "80-100", PICTURE]);
  execFileSync("optipng", ["-quiet", PICTURE]);
} finally {
  for (const end of ends) await end();
}

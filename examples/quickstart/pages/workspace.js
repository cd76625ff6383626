"use strict";

const form = document.getElementById("say");
const text = document.getElementById("text");
const send = form.querySelector("button");
const state = document.getElementById("state");
const said = document.getElementById("said");

const address = new URL("/echo", location.href);
address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
const socket = new WebSocket(address);

socket.addEventListener("open", () => {
  state.textContent = `Connected to ${address}`;
  send.disabled = false;
});

socket.addEventListener("message", (message) => {
  const line = document.createElement("li");
  line.textContent = message.data;
  said.prepend(line);
});

socket.addEventListener("close", () => {
  state.textContent = "The connection is closed. Reload the page to connect again.";
  send.disabled = true;
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (socket.readyState !== WebSocket.OPEN) return;
  socket.send(text.value);
  text.value = "";
  text.focus();
});

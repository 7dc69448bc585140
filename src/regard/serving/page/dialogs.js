// The dialogs for code and camera. That for the token is in api.js.

import { copy } from "./give.js";

/** Show lines of code, to be copied. */
export function showCode(text) {
  const dialog = document.getElementById("code-dialog");
  dialog.querySelector("code").textContent = text;
  dialog.querySelector(".copy").onclick = (event) => copy(text, event.target);
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.showModal();
}

/** Return whether the page itself can show the camera: with https, or on this machine. */
export function hasCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia);
}

/**
 * Let a visitor take a picture. Returns a file, or null if there is to be none.
 *
 * Throws an Error with a line to show if there is no camera, or it may not be used.
 */
export async function takePicture() {
  const stream = await open();
  const dialog = document.getElementById("camera-dialog"), video = dialog.querySelector("video");
  video.srcObject = stream;
  await video.play();
  const take = dialog.querySelector(".take"), close = dialog.querySelector(".close");
  return new Promise((resolve) => {
    let taken = null;
    take.onclick = async () => {
      taken = await frame(video);
      dialog.close();
    };
    close.onclick = () => dialog.close();
    dialog.addEventListener("close", () => {
      stream.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
      resolve(taken);
    }, { once: true });
    dialog.showModal();
  });
}

async function open() {
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const isRefused = error.name === "NotAllowedError";
    throw new Error(isRefused ? "The browser does not let this page use the camera." : "No camera was found.");
  }
}

async function frame(video) {
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: "image/jpeg" });
}

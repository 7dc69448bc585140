// What a visitor takes along: text for the clipboard, files to keep.

const SHOWN = 1600; // milliseconds for which a button says that it is done

/** Copy text, and say so on a button. */
export async function copy(text, button) {
  const isCopied = await write(text);
  const before = button.dataset.text ??= button.textContent;
  button.textContent = isCopied ? "Copied" : "Not allowed here";
  setTimeout(() => (button.textContent = before), SHOWN);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text); // only with https, or on this machine
    return true;
  } catch {
    const field = Object.assign(document.createElement("textarea"), { value: text, className: "hidden" });
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}

/** Keep a file under a name. */
export function download(file, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

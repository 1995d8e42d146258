// The search of the built site where it is opened from a folder.  Browsers start no Worker of a file:// page, so this
// one runs the script of the search in a hidden frame.  The theme looks for the name IFrameWorker.
"use strict";
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        frame.addEventListener("load", () => resolve(this.start(frame, address)), { once: true });
      });
      document.body.append(frame);
    }

    // Give the frame the names that a worker has, then load the script; the frame's window.
    async start(frame, address) {
      const inside = frame.contentWindow;
      const load = (url) => new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        script.src = new URL(url, location.href).href;
        script.addEventListener("load", resolve);
        script.addEventListener("error", () => reject(new Error(`${script.src} cannot be loaded`)));
        frame.contentDocument.body.append(script);
      });
      inside.importScripts = (...urls) => Promise.all(urls.map(load));
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      await load(address);
      return inside;
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker;
}

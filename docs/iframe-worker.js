/* Search of a site that is read from a folder: there, browsers start no workers. This runs the
 * worker's script in a hidden frame. The name of this file keeps the theme from loading its own
 * version of it from the network. */
(() => {
  if (location.protocol !== "file:") return

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...scripts) =>
        scripts.reduce((before, each) => before.then(() => load(inside, each)), Promise.resolve())
      load(inside, new URL(url, location.href).href).then(() => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach((data) => this.postMessage(data))
      })
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
    }

    terminate() {
      this.frame.remove()
    }
  }

  function load(inside, url) {
    return new Promise((loaded) => {
      const script = inside.document.createElement("script")
      script.src = url
      script.onload = loaded
      inside.document.body.append(script)
    })
  }

  window.IFrameWorker = IFrameWorker
  window.Worker = IFrameWorker
})()

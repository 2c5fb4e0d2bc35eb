/* Search from a folder. A browser starts no worker from file://, so that the worker's script runs in a
   hidden frame, which passes messages as a worker does. Over HTTP nothing changes. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    onmessage = null
    onerror = null
    onmessageerror = null

    constructor(url) {
      super()
      const script = new URL(url, document.baseURI).href
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = "<!doctype html>"
      this.ready = new Promise((done, fail) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow
          inside.postMessage = (data) => this.pass(data)
          const tag = inside.document.createElement("script")
          tag.onload = () => done(inside)
          tag.onerror = fail
          tag.src = script
          inside.document.head.append(tag)
        }
      })
      document.body.append(this.frame)
    }

    /* Hand a message of the worker to the page. */
    pass(data) {
      const event = new MessageEvent("message", { data })
      if (this.onmessage) this.onmessage(event)
      this.dispatchEvent(event)
    }

    postMessage(data) {
      this.ready.then(
        (inside) => inside.dispatchEvent(new MessageEvent("message", { data })),
        () => this.onerror && this.onerror(new Event("error")),
      )
    }

    terminate() {
      this.frame.remove()
    }
  }
}

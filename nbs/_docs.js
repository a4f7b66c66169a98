// A page opened from the disk may start no Worker, which the search runs in: there its script runs in a hidden frame
if (location.protocol === 'file:') window.Worker = class extends EventTarget {
  constructor(url) {
    super()
    const frame = document.createElement('iframe'), waiting = []
    frame.hidden = true
    document.body.append(frame)
    const win = frame.contentWindow, script = win.document.createElement('script')
    const send = data => win.dispatchEvent(new win.MessageEvent('message', {data}))
    win.postMessage = data => this.dispatchEvent(new MessageEvent('message', {data}))
    this.postMessage = data => waiting.push(data)
    script.onload = () => { this.postMessage = send; waiting.forEach(send) }
    script.onerror = () => this.dispatchEvent(new Event('error'))
    script.src = url
    win.document.body.append(script)
  }
}

/** Ordering between streams, for packages that queue work on a stream of the caller's choice. */
import { call } from './call.js'
import { deviceIndex } from './device.js'
import { type Stream, streamOf } from './stream.js'
import { type Tensor, tensorStream } from './tensor.js'

/**
 * Makes what is queued on `stream` from now on wait for the work that fills the tensors, where that is on another stream. Free
 * when it is on the same one, which is the rule. The host does not wait.
 * @throws RangeError when a tensor is on another device; DisposedError
 */
export function orderBehind(stream: Stream, ...tensors: readonly Tensor[]): void {
  for (const tensor of tensors) {
    const writer = tensorStream(tensor)
    if (writer === stream) continue
    if (writer.device !== stream.device) {
      throw new RangeError(`stream: is on ${stream.device}, the tensor on ${tensor.device}`)
    }
    const [from, to] = [streamOf(writer), streamOf(stream)]
    call(({ native }) => {
      const event = native.eventCreate(deviceIndex(stream.device))
      try {
        native.eventRecord(event, from)
        native.streamWait(to, event)
      } finally {
        native.release(event)
      }
    })
  }
}

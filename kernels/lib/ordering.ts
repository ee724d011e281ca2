/** Ordering between streams, for packages that queue work on a stream of the caller's choice. */
import { captureOn } from './capture.js'
import type { Stream } from './stream.js'
import { followTensor, type Tensor, tensorWriter } from './tensor.js'

/**
 * Makes what is queued on `stream` from now on wait for the work that fills the tensors, where that is on another stream. Free
 * when it is on the same one, which is the rule. The host does not wait. While `stream` is recorded, work that is not part of the recording
 * is waited for by each launch of the graph instead.
 * @throws RangeError when a tensor is on another device; DisposedError
 */
export function orderBehind(stream: Stream, ...tensors: readonly Tensor[]): void {
  for (const tensor of tensors) {
    const capture = captureOn(stream)
    if (capture === null) {
      followTensor(tensor, stream)
      continue
    }
    capture.reads(tensor, (launched) => {
      if (!tensor.disposed) followTensor(tensor, launched)
    })
    // Written by recorded work: an edge of the graph.
    if (capture.includes(tensorWriter(tensor))) followTensor(tensor, stream)
  }
}

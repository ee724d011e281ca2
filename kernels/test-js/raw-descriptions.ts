/**
 * Plain RawRouterDesc and RawMlpDesc of kernels/lib/binding.ts, also for tests of other packages: hence without an import from it, which would
 * bring this package's sources into their compilation.
 */

/** Softmax over the logits, the largest chosen and normalised; no groups. */
export const plainRouter = (experts: number, topK: number) => ({
  experts,
  topK,
  score: 0,
  groups: 1,
  keepGroups: 1,
  groupValue: 0,
  weigh: 0,
  jitter: 0.01,
  normalize: 1,
  epsilon: 0,
  scale: 1,
})

/** Float32 SwiGLU. */
export const gatedMlp = (shape: { experts: number; input: number; hidden: number; output: number }) => ({
  dtype: 0,
  kind: 2,
  activation: 16,
  limit: 7,
  alpha: 1.702,
  ...shape,
})

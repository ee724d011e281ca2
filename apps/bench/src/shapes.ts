/** The shapes that are compared, with the dimensions of published models; names are those of the anchors file. */

export interface Shape {
  readonly name: string
  /** Width of a token. */
  readonly hidden: number
  /** Inner width of one gated expert. */
  readonly inter: number
  readonly experts: number
  readonly topK: number
}

const shape = (name: string, hidden: number, inter: number, experts: number, topK: number): Shape => ({
  name,
  hidden,
  inter,
  experts,
  topK,
})

export const shapes: readonly Shape[] = [
  shape('qwen3-30b-a3b', 2048, 768, 128, 8),
  shape('olmoe-1b-7b', 2048, 1024, 64, 8),
  shape('deepseek-v2-lite', 2048, 1408, 64, 6),
  shape('gpt-oss-20b', 2880, 2880, 32, 4),
  shape('mixtral-8x7b', 4096, 14336, 8, 2),
  shape('seed-small', 512, 1024, 8, 2),
  shape('seed-medium', 1024, 2048, 16, 2),
  shape('seed-large', 2048, 4096, 32, 4),
]

/** A shape as parseShape and the peers' scripts take it, by its own name or another. */
export const shapeArgument = ({ name, hidden, inter, experts, topK }: Shape, as = name): string =>
  [as, hidden, inter, experts, topK].join(':')

/**
 * `NAME`, or `NAME:hidden:inter:experts:topk` for a shape of one's own.
 * @throws RangeError naming `--option`
 */
export function parseShape(text: string, option = 'shapes'): Shape {
  const known = shapes.find((s) => s.name === text)
  if (known) return known
  const [name, ...dims] = text.split(':')
  const [hidden, inter, experts, topK] = dims.map(Number)
  const valid = (v: number | undefined): v is number => v !== undefined && Number.isInteger(v) && v > 0
  if (!name || dims.length !== 4 || !valid(hidden) || !valid(inter) || !valid(experts) || !valid(topK))
    throw new RangeError(
      `--${option}: '${text}' is neither one of ${shapes.map((s) => s.name).join(', ')} nor NAME:hidden:inter:experts:topk`,
    )
  return shape(name, hidden, inter, experts, topK)
}

/** The same, by commas. */
export const parseShapes = (text: string): Shape[] => text.split(',').map((each) => parseShape(each))

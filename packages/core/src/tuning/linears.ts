/** The grouped linear layers of an MoE layer, as `tune` measures them and as a tune file names them. */
import type { MlpSpec } from '@nexus/router-kernels'
import { linearShapes, mlpDesc } from '@nexus/router-kernels/internal'
import { dtypeCode, type RawLinearDesc } from '../native.js'
import type { TunedLinear } from './tune-file.js'

/** The MLPs that a layer can have. */
export type MlpName = 'experts' | 'shared'

export interface LinearSpec extends Pick<TunedLinear, 'dtype' | 'numExperts' | 'k' | 'n' | 'gated'> {
  /** Such as 'experts 1' or 'shared 2': whose, and which in order. */
  readonly name: string
  /** Of which MLP of the layer, and at which place of its linear layers. */
  readonly mlp: MlpName
  readonly index: number
  /** Rows that a token has in it: topK, for a shared expert 1. */
  readonly rowsPerToken: number
  /** The first one reads its rows from their tokens; the last one writes them back to their slots. */
  readonly gather: boolean
  readonly scatter: boolean
  readonly raw: RawLinearDesc
}

/** @param inPanels whose weights lie in panels (weight-layout.ts) */
export function linearsOf(
  experts: MlpSpec,
  topK: number,
  shared: MlpSpec | null,
  inPanels: Readonly<Record<MlpName, boolean>> = { experts: false, shared: false },
): readonly LinearSpec[] {
  const of = (whose: MlpName, mlp: MlpSpec, rowsPerToken: number, routed: boolean): LinearSpec[] => {
    const shapes = linearShapes(mlp)
    const { limit, alpha, activation } = mlpDesc(mlp)
    const { dtype, numExperts } = mlp
    return shapes.map(({ rows: n, columns: k }, i) => {
      const last = i === shapes.length - 1
      return {
        name: `${whose} ${i + 1}`,
        mlp: whose,
        index: i,
        dtype,
        numExperts,
        k,
        n,
        gated: mlp.kind === 'gated' && i === 0,
        rowsPerToken,
        gather: routed && i === 0,
        scatter: routed && last,
        raw: {
          dtype: dtypeCode[dtype],
          experts: numExperts,
          k,
          n,
          epilogue: last ? 0 : activation,
          limit,
          alpha,
          inPanels: inPanels[whose],
        },
      }
    })
  }
  const all = of('experts', experts, topK, true)
  return shared === null ? all : [...all, ...of('shared', shared, 1, false)]
}

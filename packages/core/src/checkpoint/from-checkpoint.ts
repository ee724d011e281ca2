/** `MoELayer.fromCheckpoint`: a layer of a Hugging Face checkpoint folder. */
import { MoELayer } from '../layer.js'
import { type FromCheckpointOptions, readLayer } from './read-layer.js'

export {
  type CheckpointInfo,
  type FromCheckpointOptions,
  inspectCheckpoint,
  type LoadProgress,
  readLayer,
} from './read-layer.js'

/**
 * The MoE layer of a Hugging Face checkpoint folder: `config.json`, and `model.safetensors` or its index and shards.
 * @throws CheckpointError naming file and tensor; UnsupportedError for an unknown family or quantised weights; RangeError for a
 * layer without experts; the signal's reason when it aborts
 */
export async function fromCheckpoint(directory: string, options: FromCheckpointOptions = {}): Promise<MoELayer> {
  // The layer adopts the weights: `create` frees them too when it rejects.
  return MoELayer.create(await readLayer(directory, options))
}

/** `nexus-bench docs` */
import { defineCommand } from 'citty'

export default defineCommand({
  meta: {
    name: 'docs',
    description:
      'Write docs/benchmarks.md, the tables of docs/slices.md and the README’s figures from the result files',
  },
  async run() {
    const { writePages } = await import('../docs.js')
    process.stdout.write(`${writePages().join('\n')}\n`)
  },
})

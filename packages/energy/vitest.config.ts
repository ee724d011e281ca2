import { defineProject } from 'vitest/config'

export default defineProject({
  test: { name: 'energy', include: ['test/**/*.test.ts'], environment: 'node', testTimeout: 30_000 },
})

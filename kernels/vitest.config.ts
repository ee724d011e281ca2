import { defineProject } from 'vitest/config'

export default defineProject({
  test: { name: 'native', include: ['test-js/**/*.test.ts'], environment: 'node', testTimeout: 30_000 },
})

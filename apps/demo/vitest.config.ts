import { defineProject } from 'vitest/config'

// The commands run as child processes and compute for seconds: generous limits for a loaded machine.
export default defineProject({
  test: {
    name: 'demo',
    include: ['test/**/*.test.ts'],
    environment: 'node',
    testTimeout: 120_000,
    hookTimeout: 120_000,
  },
})

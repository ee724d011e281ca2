import { defineConfig } from 'tsup'

export default defineConfig({
  entry: ['src/index.ts', 'src/simulator.ts'],
  format: ['esm', 'cjs'],
  // what both entries share is one file, in CommonJS too: an error thrown by one is of the class that the other exports
  splitting: true,
  // tsup 8 sets baseUrl for its d.ts pass, which TypeScript 6 reports as deprecated
  dts: { compilerOptions: { ignoreDeprecations: '6.0' } },
  sourcemap: true,
  clean: true,
  target: 'node20',
})

// Times the kernels of wasm.py beside onnxruntime-web's dense convolution, in Node's V8, on one
// thread:  node wasm_in_v8.mjs REQUEST.json  prints the median CPU milliseconds of each job.
//
// REQUEST.json: modules (a folder with node_modules/onnxruntime-web); wasm (the kernels); memory (of
// an instance that wasm.py has filled); tables (address of each job's step); y, pitch, pixels,
// outs (where the dense job "4 1.0" puts its maps); model (ONNX, one input, one output), x, dims;
// inner (calls of a turn), reps (turns).
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const request = JSON.parse(readFileSync(process.argv[2]));
const ort = createRequire(request.modules + "/")("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const module = new WebAssembly.Module(readFileSync(request.wasm));
const imports = {};
for (const { module: from, name } of WebAssembly.Module.imports(module))
  (imports[from] ??= {})[name] = () => 52; // the kernels call nothing of the system
const { exports: kernels } = new WebAssembly.Instance(module, imports);
const filled = readFileSync(request.memory);
const missing = filled.length - kernels.memory.buffer.byteLength;
if (missing > 0) kernels.memory.grow(Math.ceil(missing / 65536));
new Uint8Array(kernels.memory.buffer).set(filled);

const jobs = {};
for (const [name, table] of Object.entries(request.tables))
  jobs[name] = () => kernels.intarsia_chw_run(table, 0n, 1n, 1n);
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(request.model)));
const bytes = readFileSync(request.x);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", values, request.dims) };
jobs["onnxruntime-web"] = () => session.run(feeds);

// both compute the same maps
jobs["4 1.0"]();
const theirs = (await session.run(feeds))[session.outputNames[0]].data;
const ours = new Float32Array(kernels.memory.buffer, request.y, request.outs * request.pitch);
for (let map = 0; map < request.outs; map++)
  for (let pixel = 0; pixel < request.pixels; pixel++) {
    const [a, b] = [ours[map * request.pitch + pixel], theirs[map * request.pixels + pixel]];
    if (Math.abs(a - b) > 1e-3 * (1 + Math.abs(b))) throw new Error(`map ${map}: ${a}, ${b}`);
  }

const names = Object.keys(jobs);
const times = Object.fromEntries(names.map((name) => [name, []]));
for (let rep = -1; rep < request.reps; rep++)
  for (let turn = 0; turn < names.length; turn++) {
    const name = names[(turn + rep + names.length) % names.length];
    const before = process.cpuUsage();
    for (let i = 0; i < request.inner; i++) await jobs[name]();
    const { user, system } = process.cpuUsage(before);
    if (rep >= 0) times[name].push((user + system) / 1e3 / request.inner);
  }
const median = (list) => list.sort((a, b) => a - b)[Math.floor(list.length / 2)];
console.log(JSON.stringify(Object.fromEntries(names.map((name) => [name, median(times[name])]))));
process.exit(0);

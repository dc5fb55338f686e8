// Starts a student's desk, watches it come up, opens the editor, reports activity:  node start-and-watch.mjs STUDENT [COURSE]
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { readError } from './errors.mjs';

const proto = fileURLToPath(new URL('../../../proto', import.meta.url));
const options = { includeDirs: [proto], keepCase: true, longs: Number, enums: String, defaults: true };
const { carrel } = grpc.loadPackageDefinition(loadSync('carrel/v1/workspace_service.proto', options));
const client = new carrel.v1.WorkspaceService(process.env.CARREL_ENDPOINT || '127.0.0.1:7300', grpc.credentials.createInsecure());

const [student_id, course_id = ''] = process.argv.slice(2);
if (!student_id) {
  console.error('usage: node start-and-watch.mjs STUDENT [COURSE]');
  process.exit(2);
}
const name = `workspaces/${student_id}`;

// Every call has a deadline: gRPC sets none by itself.
const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, { deadline: Date.now() + 10_000 }, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

// Tries again where that helps, for two minutes. What is wrong with the request itself comes back at once.
async function retrying(attempt) {
  for (const end = Date.now() + 120_000; ; ) {
    try {
      return await attempt();
    } catch (thrown) {
      const error = readError(thrown);
      if (error.retryAfterMs === undefined || Date.now() + error.retryAfterMs > end) throw thrown;
      console.log(`${sentence(error)}; again in ${error.retryAfterMs / 1000} s`);
      await sleep(error.retryAfterMs);
    }
  }
}

const sentence = ({ code, reason = '-', message }) => `${code} ${reason}: ${message}`;

let resume_token = '';
async function watchUntilRunning() {
  const stream = client.WatchWorkspaces({ names: [name], resume_token });
  try {
    for await (const { change } of stream) {
      resume_token = change.resume_token || resume_token;
      const desk = change.workspace; // none with SYNCED: the snapshot is complete
      if (!desk) continue;
      console.log(desk.state, desk.progress ? `${desk.progress.stage} ${desk.progress.percent} %` : desk.status_message);
      if (desk.state === 'STATE_RUNNING') return;
      if (!desk.reconciling || desk.state === 'STATE_FAILED') throw new Error(`it will not run: ${desk.status_reason}`);
    }
  } finally {
    stream.on('error', () => {}).cancel(); // its CANCELLED is our own doing
  }
}

const time = ({ seconds, nanos }) => new Date(seconds * 1000 + nanos / 1e6).toISOString();
try {
  const request_id = randomUUID(); // one for all tries: a start whose answer was lost is not done twice
  const { workspace } = await retrying(() => call('StartWorkspace', { student_id, course_id, request_id }));
  console.log(`asked for generation ${workspace.generation} of ${workspace.name}`);
  await retrying(watchUntilRunning);
  console.log('editor:', (await retrying(() => call('CreateAccess', { name, purpose: 'PURPOSE_EDITOR' }))).url);
  const { idle } = await retrying(() => call('RecordHeartbeat', { name, signal: 'SIGNAL_LMS_INPUT' }));
  console.log('deadline:', time(idle.deadline_time));
} catch (thrown) {
  const error = readError(thrown);
  console.error(error.code ? sentence(error) : thrown.message);
  for (const { field, description } of error.fields) console.error(`  ${field}: ${description}`);
  for (const [key, value] of Object.entries(error.metadata)) console.error(`  ${key} = ${value}`);
  process.exitCode = 1;
}
client.close();

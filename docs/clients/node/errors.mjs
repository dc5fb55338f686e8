// Reads what an error of Carrel says beyond its code: a stable reason, bad fields, when to try again.
import { status } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { fileURLToPath } from 'node:url';

const types = loadSync(fileURLToPath(new URL('google-rpc.proto', import.meta.url)), { keepCase: true, longs: Number, defaults: true });

export function readError(error) {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  const details = {};
  for (const { type_url, value } of packed ? types['google.rpc.Status'].deserialize(packed).details : []) {
    const name = type_url.split('/').pop();
    if (types[name]) details[name] = types[name].deserialize(value);
  }
  const info = details['google.rpc.ErrorInfo'];
  const delay = details['google.rpc.RetryInfo']?.retry_delay;
  return {
    code: status[error.code],
    message: error.details ?? error.message,
    reason: info?.reason, // the one to program against
    metadata: info?.metadata ?? {},
    fields: details['google.rpc.BadRequest']?.field_violations ?? [],
    retryAfterMs: delay ? delay.seconds * 1000 + delay.nanos / 1e6 : withoutAnswer(error.code),
  };
}

// The server was not reached, or not in time, so it could not say when to try again.
const withoutAnswer = (code) => ([status.UNAVAILABLE, status.DEADLINE_EXCEEDED].includes(code) ? 1000 : undefined);

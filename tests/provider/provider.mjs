// The OpenID provider of the tests: oidc-provider, with keys that are made when it
// starts and clients whose ID tokens are signed with different algorithms.
//
// It prints one line of JSON with its issuer and the address of its control port,
// and ends when its standard input does.

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';

import Provider from 'oidc-provider';

const ALGORITHMS = ['RS256', 'ES256', 'EdDSA'];
const REDIRECT = 'https://coders.test/.apisix/redirect';
const DISCOVERY = '/.well-known/openid-configuration';
const KEYS = '/jwks';

const cookieKeys = [randomBytes(32).toString('hex')];
const counts = { [DISCOVERY]: 0, [KEYS]: 0 };
let keys = [];
let rotations = 0;
let hangs = false;
let provider;

function newKeys() {
  rotations += 1;
  const pairs = {
    RS256: generateKeyPairSync('rsa', { modulusLength: 2048 }),
    ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    EdDSA: generateKeyPairSync('ed25519'),
  };
  return ALGORITHMS.map((alg) => ({
    ...pairs[alg].privateKey.export({ format: 'jwk' }), alg, use: 'sig', kid: `${alg}-${rotations}`,
  }));
}

// A provider can't change its keys, so each rotation makes a new one. Sessions and
// codes are in memory that all of them share.
function newProvider(issuer) {
  const made = new Provider(issuer, {
    clients: ALGORITHMS.map((alg) => ({
      client_id: `apisix-${alg.toLowerCase()}`,
      client_secret: 'public',
      redirect_uris: [REDIRECT],
      id_token_signed_response_alg: alg,
    })),
    jwks: { keys },
    enabledJWA: { idTokenSigningAlgValues: ALGORITHMS },
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups'] },
    // The gateway reads the ID token alone.
    conformIdTokenClaims: false,
    cookies: { keys: cookieKeys },
    features: { devInteractions: { enabled: false } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({ sub: id, preferred_username: id, groups: ['/developers'] }),
    }),
    ttl: { IdToken: 3600, AccessToken: 3600, AuthorizationCode: 60, Grant: 3600, Session: 3600, Interaction: 600 },
  });
  return { made, callback: made.callback() };
}

// Logs in the user of the login hint, who agrees to everything.
async function interact(request, response) {
  const { made } = provider;
  const { prompt, params, session } = await made.interactionDetails(request, response);
  if (prompt.name === 'login') {
    return made.interactionFinished(request, response, { login: { accountId: params.login_hint } });
  }
  const grant = new made.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope('openid profile');
  return made.interactionFinished(request, response, { consent: { grantId: await grant.save() } });
}

const server = createServer((request, response) => {
  const { pathname } = new URL(request.url, 'http://provider');
  if (pathname in counts) {
    counts[pathname] += 1;
    if (hangs) return;
  }
  if (pathname.startsWith('/interaction/')) {
    interact(request, response).catch((error) => response.writeHead(500).end(String(error)));
  } else {
    provider.callback(request, response);
  }
});

async function listen(listener, port) {
  listener.listen(port, '127.0.0.1');
  await once(listener, 'listening');
  return listener.address().port;
}

const port = await listen(server, 0);
const issuer = `http://127.0.0.1:${port}`;

const controls = {
  // The new keys sign from now on; the old ones are still published, or not.
  '/rotate': (query) => {
    keys = query.has('drop') ? newKeys() : [...newKeys(), ...keys];
    provider = newProvider(issuer);
  },
  '/hang': () => { hangs = true; },
  '/resume': () => { hangs = false; },
  '/down': async () => {
    const closed = once(server, 'close');
    server.close();
    server.closeAllConnections();
    await closed;
  },
  '/up': () => listen(server, port),
  '/counts': () => counts,
};

const control = createServer(async (request, response) => {
  const { pathname, searchParams } = new URL(request.url, 'http://control');
  try {
    response.end(JSON.stringify((await controls[pathname](searchParams)) ?? null));
  } catch (error) {
    response.writeHead(500).end(String(error));
  }
});

controls['/rotate'](new URLSearchParams());
const controlPort = await listen(control, 0);
console.log(JSON.stringify({ issuer, control: `http://127.0.0.1:${controlPort}`, redirect: REDIRECT }));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));

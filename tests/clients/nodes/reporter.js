// An agent that reports results with the token it finds in its environment, and then waits.
const { AGENT_RELAY_RESULT_URL: url, AGENT_RELAY_RESULT_TOKEN: token, AGENT_RELAY_RESULT_SCHEMA: schema } = process.env;
const say = async (body) => {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  console.log(answer.status, await answer.text());
};
await say({ data: { part: 1 }, final: false });
await say({ agent: process.env.RELAY_AGENT_NAME, data: { answer: 42, schema: JSON.parse(schema) }, metadata: { took: 7 } });
setInterval(() => {}, 1e6);

//! `init`: the daemon.

use std::path::PathBuf;

use super::Failure;
use crate::daemon::{self, Options};

pub const HELP: &str = "\
Run the broker: enrol this machine as a node, keep agents in terminals, deliver their messages

Usage: agent-relay-broker init [OPTIONS]

Options:
  --name <NAME>            Name of the broker and of its node (alias --broker-name)
  --instance-name <NAME>   Name of this instance; beats --name
  --workspace-key <KEY>    Workspace key (rk_…) [env AGENT_RELAY_WORKSPACE_KEY, RELAY_WORKSPACE_KEY, RELAY_API_KEY]
  --channels <CSV>         Channels that the broker's own agent joins [default: general]
  --api-port <PORT>        Port of the local API, 0 = any free one [default: 0]
  --api-bind <HOST>        Address of the local API [default: 127.0.0.1]
  --api-host <NAME>        One more host name that requests may carry (repeatable)
  --persist                Keep state in <cwd>/.agentworkforce/relay and take over the agent's name
  --state-dir <DIR>        Keep state in DIR
  --local                  Run an engine inside this process: no account, no network
  --data <DIR>             With --local: keep the engine's data in DIR
  -h, --help               Print help
";

pub fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    use lexopt::prelude::*;
    let mut options = Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("name" | "broker-name") => options.name = Some(parser.value()?.string()?),
            Long("instance-name") => options.instance_name = Some(parser.value()?.string()?),
            Long("workspace-key") => options.workspace_key = Some(parser.value()?.string()?),
            Long("channels") => options.channels = csv(&parser.value()?.string()?),
            Long("api-port") => options.api_port = parser.value()?.parse()?,
            Long("api-bind") => options.api_bind = parser.value()?.string()?,
            Long("api-host") => options.api_hosts.push(parser.value()?.string()?),
            Long("persist") => options.persist = true,
            Long("state-dir") => options.state_dir = Some(PathBuf::from(parser.value()?)),
            Long("local") => options.local = true,
            Long("data") => options.data = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.data.is_some() && !options.local {
        return Err(Failure::Usage(
            "--data needs --local: it is where the engine inside the broker keeps its data".into(),
        ));
    }
    daemon::run(options).map_err(Failure::from)
}

fn csv(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_readme_lists_every_flag_and_no_other() {
        let words = super::HELP.split([' ', '\n', ')', ',', ':']);
        let flags: BTreeSet<String> =
            words.filter(|word| word.starts_with("--") && *word != "--help").map(str::to_string).collect();
        let flags: Vec<String> = flags.into_iter().collect();
        let listed = crate::checks::names("Flags of `init`");
        crate::checks::difference("flags of init", &listed, &flags);
        // And the help names what is taken.
        let code = include_str!("init.rs").split("pub fn run").nth(1).expect("the parser");
        let code = code.split("other =>").next().expect("its arms");
        let arms = code.lines().filter_map(|line| line.trim().strip_prefix("Long(")?.split(')').next());
        let taken = arms.flat_map(|arm| arm.split('"').skip(1).step_by(2)).map(|name| format!("--{name}"));
        crate::checks::difference("arms of init", &listed, &taken.collect::<Vec<_>>());
    }
}

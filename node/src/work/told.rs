//! What a node tells of its work, without the secrets of the pipeline's APIs. A server may put what it was sent into its
//! records, where it is data and goes where the pipeline sends it; a failure quotes values of rows, and so do checks. This
//! is the one place that all of them pass on their way to the coordinator, which keeps them for good.

use haulage_core::failure::{Class, Failure};
use haulage_core::ids::Work;
use haulage_proto::link::message::Outcome;

use super::Order;
use super::run::RunContext;
use crate::config::NodeConfig;
use crate::source::database::Databases;
use crate::source::{self, Secrets};

/// The result without any secret. Of a step, which any node may do, nothing is told on one that can't tell a secret from
/// data: what it was is replaced by how to find out.
pub(super) fn without_secrets(
    config: &NodeConfig,
    order: &Order,
    result: Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    if !matches!(result, Err(_) | Ok(Outcome::Stepped { .. })) {
        return result;
    }
    // What can't be read has no sources.
    let Ok(definition) = RunContext::parse(order.into()) else {
        return result;
    };
    let (secrets, unknown) = source::secrets(&definition, &Databases::of(config));
    let is_step = matches!(order.assignment.key.work, Work::Step(_) | Work::Compensate(_));
    told(&secrets, if is_step { &unknown } else { &[] }, result)
}

fn told(secrets: &Secrets, unknown: &[String], result: Result<Outcome, Failure>) -> Result<Outcome, Failure> {
    let clean = |text: &str| match unknown {
        [] => secrets.blot(text),
        names => format!(
            "what was found is not shown: it may hold secret://{}, which this node doesn't know; give every node the secrets of \
             the pipeline's APIs",
            names.join(" or secret://")
        ),
    };
    match result {
        Ok(Outcome::Stepped { mut report }) => {
            report.detail = secrets.blot(&report.detail);
            for check in &mut report.checks {
                check.found = clean(&check.found);
            }
            Ok(Outcome::Stepped { report })
        }
        Err(failure) => Err(Failure {
            message: match failure.class {
                Class::Permanent => clean(&failure.message),
                Class::Transient | Class::Poison | Class::Fenced | Class::StagingLost => secrets.blot(&failure.message),
            },
            ..failure
        }),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use haulage_core::event::{CheckResult, StepReport};

    use super::*;

    fn checked(secrets: &Secrets, unknown: &[String], found: &str) -> String {
        let report = StepReport {
            checks: vec![CheckResult {
                found: found.to_owned(),
                ..CheckResult::default()
            }],
            ..StepReport::default()
        };
        match told(secrets, unknown, Ok(Outcome::Stepped { report })) {
            Ok(Outcome::Stepped { mut report }) => report.checks.remove(0).found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_may_hold_a_secret_that_is_not_known_is_not_told() {
        let secrets = Secrets::of(&["hunter2"]);
        assert_eq!(checked(&secrets, &[], "such as hunter2"), "such as ***");
        let unknown = ["api".to_owned()];
        let found = checked(&Secrets::default(), &unknown, "such as hunter2");
        assert!(found.contains("secret://api") && !found.contains("hunter2"), "{found}");
        for (failure, hidden) in [
            (Failure::permanent("key (hunter3)"), true),
            (Failure::transient("connection lost"), false),
        ] {
            let class = failure.class;
            let told = told(&secrets, &unknown, Err(failure.clone())).unwrap_err();
            assert_eq!((told.class, told.message != failure.message), (class, hidden));
        }
        let told = told(&secrets, &[], Err(Failure::transient("at \"hunter...\""))).unwrap_err();
        assert_eq!(told.message, "at \"***...\"");
    }
}

//! What a server is told about who asks, and how it is kept out of everything else: servers echo what they are sent, in
//! errors, in links and in records.

use std::fmt;

use haulage_core::failure::Failure;
use haulage_plan::definition::{RestAuth, RestUser, SecretName};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::blot::{Secrets, base64};
use crate::source::database::Databases;

/// The header that says who asks, and the texts that nobody else may see.
#[derive(Default)]
pub(super) struct Credentials {
    header: Option<(HeaderName, HeaderValue)>,
    secrets: Secrets,
    /// The secrets' names.
    names: Vec<String>,
}

impl Credentials {
    /// Looks the secrets up. Permanent failure, without any of them, if one isn't there or can't be sent.
    pub(super) fn resolve(auth: Option<&RestAuth>, known: &Databases) -> Result<Self, Failure> {
        let Some(auth) = auth else { return Ok(Self::default()) };
        let mut secrets = Secrets::default();
        let mut look_up = |SecretName(name): &SecretName| {
            let value = known.secret(name)?;
            let value = value.trim_end_matches(['\n', '\r']).to_owned();
            if value.is_empty() || value.bytes().any(|byte| byte.is_ascii_control()) {
                return Err(Failure::permanent(format!(
                    "secret://{name} is empty or holds a control character, which no header can"
                )));
            }
            secrets.add(&value);
            Ok(value)
        };
        let (header, text) = match auth {
            RestAuth::Bearer(secret) => (AUTHORIZATION, format!("Bearer {}", look_up(secret)?)),
            RestAuth::Basic { user, password } => {
                let user = match user {
                    RestUser::Text(user) => user.clone(),
                    RestUser::Secret(secret) => look_up(secret)?,
                };
                let packed = base64(format!("{user}:{}", look_up(password)?).as_bytes());
                let text = format!("Basic {packed}");
                secrets.add_packed(&packed);
                (AUTHORIZATION, text)
            }
            RestAuth::Header { name, value } => {
                let header = HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| Failure::permanent(format!("`{name}` can't be the name of a header")))?;
                (header, look_up(value)?)
            }
        };
        let mut value = HeaderValue::from_bytes(text.as_bytes())
            .map_err(|_| Failure::permanent("a secret holds a character that no header can hold"))?;
        value.set_sensitive(true);
        Ok(Self {
            header: Some((header, value)),
            secrets,
            names: auth.secrets().iter().map(|SecretName(name)| name.clone()).collect(),
        })
    }

    pub(super) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        self.header.clone()
    }

    /// What to look at when the server doesn't take them.
    pub(super) fn advice(&self) -> String {
        match self.names.as_slice() {
            [] => "the source has no `auth`: write `auth: {bearer: secret://NAME}`, or what the server asks for"
                .to_owned(),
            names => format!("check secret://{} and what it may read", names.join(" and secret://")),
        }
    }

    /// The secrets' names, if one of them stands in a text.
    pub(super) fn found_in(&self, text: &[u8]) -> Option<String> {
        self.secrets.holds(text).then(|| self.names.join(", "))
    }

    /// The text without any secret.
    pub(super) fn blot(&self, text: &str) -> String {
        self.secrets.blot(text)
    }

    pub(super) fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

// By hand, so that no secret is shown.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    fn known(secrets: &[(&str, &str)]) -> (tempfile::TempDir, Databases) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in secrets {
            std::fs::write(folder.path().join(name), value).unwrap();
        }
        let mut config = NodeConfig::new("n", "store");
        config.secrets_dir = Some(folder.path().to_owned());
        (folder, Databases::of(&config))
    }

    #[test]
    fn a_secret_is_sent_and_shown_nowhere_in_any_form() {
        let secret = "s3cr/t \"x\"+ü";
        let (_folder, known) = known(&[("rest_key", &format!("{secret}\n"))]);
        let name = || SecretName("rest_key".into());
        for (auth, sent) in [
            (RestAuth::Bearer(name()), format!("Bearer {secret}")),
            (
                RestAuth::Basic {
                    user: RestUser::Text("Aladdin".into()),
                    password: name(),
                },
                format!("Basic {}", base64(format!("Aladdin:{secret}").as_bytes())),
            ),
            (
                RestAuth::Header {
                    name: "X-Api-Key".into(),
                    value: name(),
                },
                secret.to_owned(),
            ),
        ] {
            let credentials = Credentials::resolve(Some(&auth), &known).unwrap();
            let (_, value) = credentials.header().unwrap();
            assert_eq!(value.as_bytes(), sent.as_bytes());
            let json = serde_json::json!({"you sent": sent, "and": secret}).to_string();
            let in_url: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
            for echo in [sent, json, in_url, format!("a {secret} b {secret}")] {
                assert!(credentials.found_in(echo.as_bytes()).is_some(), "{echo}");
                let shown = credentials.blot(&echo);
                assert!(credentials.found_in(shown.as_bytes()).is_none(), "{shown}");
                assert!(shown.contains("***") && !shown.contains("s3cr"), "{shown}");
            }
            assert_eq!(credentials.blot("nothing of it"), "nothing of it");
            let shown = format!("{credentials:?} {value:?} {}", credentials.advice());
            assert!(shown.contains("rest_key") && !shown.contains("s3cr"), "{shown}");
        }
    }

    #[test]
    fn a_secret_that_is_not_there_is_named() {
        let (_folder, known) = known(&[("empty", "\n"), ("lines", "a\nb")]);
        for (name, part) in [
            ("missing", "HAULAGE_SECRET_missing"),
            ("empty", "secret://empty is empty"),
            ("lines", "secret://lines is empty or holds a control character"),
        ] {
            let auth = RestAuth::Bearer(SecretName(name.into()));
            let failure = Credentials::resolve(Some(&auth), &known).unwrap_err();
            assert!(failure.message.contains(part), "{failure}");
        }
        let none = Credentials::resolve(None, &known).unwrap();
        assert!(none.header().is_none() && none.found_in(b"").is_none());
    }
}

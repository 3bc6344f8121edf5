//! Slurm's way of writing many names: `gpu[01-04,7]-ib,login`, `rack[1-2]n[1-3]`.

/// The names, in order; `None` when it is no such list.
pub fn expand(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for part in split(list)? {
        names.extend(expand_one(part)?);
    }
    (!names.is_empty()).then_some(names)
}

/// At commas outside brackets.
fn split(list: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut is_inside) = (Vec::new(), 0, false);
    for (at, letter) in list.char_indices() {
        match (letter, is_inside) {
            ('[', false) => is_inside = true,
            (']', true) => is_inside = false,
            ('[', true) | (']', false) => return None,
            (',', false) => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    (!is_inside).then_some(parts)
}

/// One name with any number of brackets in it; the last one runs fastest.
fn expand_one(name: &str) -> Option<Vec<String>> {
    let Some((head, rest)) = name.split_once('[') else {
        return (!name.is_empty()).then(|| vec![name.to_owned()]);
    };
    let (ranges, tail) = rest.split_once(']')?;
    let tails = if tail.is_empty() { vec![String::new()] } else { expand_one(tail)? };
    let mut names = Vec::new();
    for range in ranges.split(',') {
        for number in numbers(range)? {
            names.extend(tails.iter().map(|tail| format!("{head}{number}{tail}")));
        }
    }
    Some(names)
}

/// `08-11`, with its zeros; or one number.
fn numbers(range: &str) -> Option<Vec<String>> {
    const MOST: u64 = 1 << 20;
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let (from, to): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let width = first.len();
    (from <= to && to - from < MOST).then(|| (from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_slurm_writes_them() {
        for (list, names) in [
            ("node7", vec!["node7"]),
            ("n[1-3]", vec!["n1", "n2", "n3"]),
            ("gpu[01-02,7]-ib,login", vec!["gpu01-ib", "gpu02-ib", "gpu7-ib", "login"]),
            ("a[08-11]", vec!["a08", "a09", "a10", "a11"]),
            ("r[1-2]n[1-2]", vec!["r1n1", "r1n2", "r2n1", "r2n2"]),
            ("x,y[3],z", vec!["x", "y3", "z"]),
        ] {
            assert_eq!(
                expand(list).as_deref(),
                Some(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()[..]),
                "{list}"
            );
        }
        for wrong in ["", "n[1-", "n]1[", "n[2-1]", "n[a-b]", "n[]", ",", "a,", "n[0-99999999]"] {
            assert_eq!(expand(wrong), None, "{wrong}");
        }
    }
}

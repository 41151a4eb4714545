//! What a pipeline says about change: of a source, where its objects aren't what its `columns` say, and of a load, where
//! its target hasn't the columns of its rows. Both are settings alone; who reads and who publishes carries them out.

/// What becomes of columns that a source's objects have and its `columns` don't name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NewColumn {
    /// They join the source's columns, nullable and with the object's type or as text.
    Add,
    /// They are left out.
    #[default]
    Ignore,
    /// Rows that have them go to quarantine as `new_column`.
    Quarantine,
    /// They end the run.
    Fail,
}

/// What becomes of a declared column that an object lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingColumn {
    /// It ends the run.
    Fail,
    /// It is without a value in every row, unless it needs one.
    Null,
}

/// What becomes of a type that is wider than what is there to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WiderType {
    /// The wider type is taken.
    Widen,
    /// It ends the run.
    Fail,
}

/// What becomes of a row that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BadRow {
    /// It goes to quarantine.
    #[default]
    Quarantine,
    /// It ends the run.
    Fail,
}

/// What a source says about change, beside its `columns`. `None` is what its kind does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contract {
    /// `on_new_column`.
    pub on_new_column: NewColumn,
    /// `on_missing_column`: by itself files and tables have to have every declared column, and so has the first page of an
    /// API; JSON lines, where every object may lack keys, have none that they lack.
    pub on_missing_column: Option<MissingColumn>,
    /// `on_wider_type`, of the object's own type and the declared one: by itself Parquet refuses it, and of a database every
    /// value that doesn't fit is a row that can't be read.
    pub on_wider_type: Option<WiderType>,
    /// `on_bad_row`.
    pub on_bad_row: BadRow,
}

impl Contract {
    /// Whether the source's columns may be others than the declared ones, so that somebody has to look at its objects.
    pub fn finds_columns(&self) -> bool {
        self.on_new_column == NewColumn::Add || self.on_wider_type == Some(WiderType::Widen)
    }

    /// Whether objects have to be held against the columns beyond what their kind does by itself.
    pub fn is_plain(&self) -> bool {
        self.on_new_column == NewColumn::Ignore && self.on_missing_column.is_none() && self.on_wider_type.is_none()
    }
}

/// What a load may do to a target that exists. `None` is what its destination does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Evolution {
    /// `on_new_column`: whether a column that the target lacks is added to it, else it ends the run.
    pub adds_columns: bool,
    /// `on_wider_type`, of the load's type and the target's: by itself a larger integer is tried value by value, and every
    /// other type that the target's can't hold ends the run.
    pub on_wider_type: Option<WiderType>,
}

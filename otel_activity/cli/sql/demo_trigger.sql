-- {table} and {schema} are identifiers, {key} is a list of literals: the columns of the primary key.
CREATE OR REPLACE TRIGGER record_truth
    AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {schema}.record_truth({key})

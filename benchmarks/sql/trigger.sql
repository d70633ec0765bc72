-- Three triggers for one table; {table} is filled in as an identifier.
CREATE TRIGGER audit_insert AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION audit_row();
CREATE TRIGGER audit_update AFTER UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_row();
CREATE TRIGGER audit_delete AFTER DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_row();

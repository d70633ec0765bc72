-- A column that the server writes by itself, as applications have for "last changed" columns.
CREATE FUNCTION stamp_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.stamped := coalesce(OLD.stamped, 0) + 1;
    RETURN NEW;
END
$$;

CREATE TRIGGER stamp BEFORE UPDATE ON account FOR EACH ROW EXECUTE FUNCTION stamp_account();

CREATE FUNCTION going_down() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'terminating connection due to administrator command' USING ERRCODE = 'admin_shutdown';
END $$;
CREATE TRIGGER going_down BEFORE INSERT ON account FOR EACH ROW EXECUTE FUNCTION going_down();

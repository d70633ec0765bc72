SELECT id, name FROM account ORDER BY id

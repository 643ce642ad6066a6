from qatfast.reference import fake_quant  # replaced by the native op (in the works)
